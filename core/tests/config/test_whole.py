"""The whole configuration: lines of keys, every value with its origin, all errors at once."""

import tomllib

import pytest

from cowshed.config import lines, settings
from cowshed.config.whole import Whole

TEXT = '''# a comment with a [table] = 1
title = "x = [1"
[a.b]            # [no.table]
c = 1
"d e".f = 'single # no comment'
g = [
  "one",  # = ]
  { h = "]" },
]
i = """
[not.a.table]
j = 2
"""
k = { l = 1, m = { n = 2 } }

[[o]]
p = 1
[[o]]
q = 2
[a.'r.s']
t = true
'''


def test_lines_of_keys():
    found = lines.of(TEXT)
    assert found == {
        ("title",): 2, ("a", "b"): 3, ("a", "b", "c"): 4, ("a", "b", "d e"): 5, ("a", "b", "d e", "f"): 5,
        ("a", "b", "g"): 6, ("a", "b", "i"): 10, ("a", "b", "k"): 14, ("o",): 16, ("o", "p"): 17, ("o", "q"): 19,
        ("a", "r.s"): 20, ("a", "r.s", "t"): 21,
    }  # fmt: skip
    assert lines.line_of(found, ("a", "b", "k", "m", "n")) == 14
    assert lines.line_of(found, ("z",)) == 0
    document = tomllib.loads(TEXT)
    for keys in found:
        at = document
        for key in keys:
            at = at[-1 if key == "q" else 0][key] if isinstance(at, list) else at[key]


@pytest.mark.parametrize("text", ["", "\n\n", "a=1", "a = '''x'''\nb = 2", 'a = """x""""\nb = 2', "a = ''\r\nb = 2"])
def test_lines_of_short_and_odd_documents(text):
    text = text.replace("\r\n", "\n")
    assert set(lines.of(text)) == {(key,) for key in tomllib.loads(text)}
    assert lines.of(text).get(("b",), 2) == 2


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.setattr(settings, "SYSTEM_FOLDER", str(tmp_path / "etc"))
    (tmp_path / "etc/config.d").mkdir(parents=True)
    (tmp_path / "home/cowshed").mkdir(parents=True)
    return tmp_path


def whole(place, flags=None, environ=None, **more):
    return Whole(
        {"root": str(place / "store"), "run_root": str(place / "run"), **(flags or {})},
        {"XDG_CONFIG_HOME": str(place / "home"), **(environ or {})},
        **more,
    )


def origins(found, *names):
    told = {value.name: value for value in found.values()}
    return [(told[name].value, told[name].origin, told[name].overruled) for name in names]


def test_every_value_has_its_origin_and_what_it_overrules(place):
    system, user = place / "etc/config.toml", place / "home/cowshed/config.toml"
    system.write_text('[storage]\ndriver = "copy"\n\n[storage.drivers.overlay]\nindex = "on"\nxino = "on"\n')
    user.write_text('storage.driver = "btrfs"\n[storage.drivers.overlay]\nxino = "off"\n')
    found = whole(place, {"driver": "overlay", "driver_option": ["index=off"]}, {"COWSHED_DRIVER": "copy"})
    assert found.problems == []
    assert origins(found, "root", "storage.driver", "storage.durability", "runtime.default") == [
        (str(place / "store"), "option --root", ()),
        ("overlay", "option --driver", (
            "environment variable COWSHED_DRIVER says copy", f"{user}:1 says btrfs", f"{system}:2 says copy",
        )),
        ("commit", "default", ()),
        ("native", "default", ()),
    ]  # fmt: skip
    assert origins(found, *(f"storage.drivers.overlay.{name}" for name in ("index", "xino", "metacopy"))) == [
        ("off", "option --driver-option", (f"{system}:5 says on",)),
        ("off", f"{user}:3", (f"{system}:6 says on",)),
        ("off", "default", ()),
    ]
    assert not [v for v in found.values() if "copy." in v.name]
    assert [v for v in found.values(every_driver=True) if ".btrfs." in v.name]


def test_the_environment_and_the_store_have_a_say(place):
    found = Whole({}, {"COWSHED_ROOT": "/somewhere", "HOME": "/nobody"}, stored="copy")
    assert origins(found, "root", "storage.driver") == [
        ("/somewhere", "environment variable COWSHED_ROOT", ()),
        ("copy", "the store, which has its layers there", ()),
    ]
    (place / "etc/config.toml").write_text('[storage.drivers.btrfs]\nquota = "simple"\n')
    kept = whole(place, kept={"btrfs": {"quota": "off"}})
    ((value, origin, overruled),) = origins(kept, "storage.drivers.btrfs.quota")
    (problem,) = kept.problems
    assert (value, origin) == ("off", "the store, whose creation has fixed it")
    assert overruled == (f"{place}/etc/config.toml:2 says simple",)
    assert "is 'off' in this store and cannot become 'simple'" in problem.text
    assert (problem.path, problem.line) == (f"{place}/etc/config.toml", 2)


WRONG = """[storage]
drivr = "x"
driver = "overlya"
durability = "comit"
[storage.drivers.overlay]
indx = "on"
index = "maybe"
[storage.drivers.overly]
a = 1
[runtime]
default = "krun"
binaries.crun = "crun"
binaries.runc = "/usr/bin/runc"
[registries."docker.io"]
mirrors = ["http://a", {}]
blockd = true
[registries.alone]
fallback = false
[registries.both]
blocked = true
mirrors = ["https://a.example"]
[registries.plain]
insecure = true
ca = "/etc/ca.pem"
[registries.odd]
mirrors = ["ftp://a"]
"""
TOLD = [
    (2, "storage.drivr is no setting", "did you mean storage.driver?"),
    (3, "driver overlya is not installed", "did you mean overlay?"),
    (4, "storage.durability is commit or none, not 'comit'", "did you mean commit?"),
    (6, "driver overlay has no option indx", "did you mean index?"),
    (7, "option index of driver overlay is one of off, on, not 'maybe'", ""),
    (8, "storage.drivers.overly is for a driver that is not installed", "did you mean storage.drivers.overlay?"),
    (11, "runtime krun is neither native nor in [runtimes] nor a program", "did you mean runc?"),
    (12, "runtime.binaries.crun is an absolute path, not 'crun'", ""),
    (15, 'registries."docker.io".mirrors has an entry without a url', 'write "https://HOST[:PORT][/PREFIX]"'),
    (16, 'registries."docker.io".blockd is no setting', 'did you mean registries."docker.io".blocked?'),
    (18, "registries.alone.fallback = false has no mirrors that could serve instead", "name mirrors, or say blocked"),
    (20, "registries.both is blocked and has mirrors or a fallback, which nobody asks then", "take one of the two out"),
    (24, "registries.plain has insecure = true and a ca: plain HTTP uses no certificates", "take one of the two out"),
    (26, "'ftp://a' is no address of a mirror", 'write "https://HOST[:PORT][/PREFIX]"'),
]


def test_all_that_is_wrong_is_told_at_once(place):
    path = place / "etc/config.toml"
    path.write_text(WRONG)
    found = whole(place)
    assert [problem.line for problem in found.problems] == [line for line, _, _ in TOLD]
    assert {problem.path for problem in found.problems} == {str(path)}
    for problem, (_, text, remedy) in zip(found.problems, TOLD, strict=True):
        assert text in problem.text
        assert remedy in problem.remedy
    assert ("overlya", f"{path}:3", ()) in origins(found, "storage.driver"), "what is right in the file is still told"


def test_a_file_that_is_no_toml_hides_no_other(place):
    (place / "etc/config.toml").write_text("[storage\n")
    (place / "etc/config.d/x.toml").write_text('[storage]\ndurability = "none"\nx = 1\n')
    found = whole(place)
    assert [problem.where for problem in found.problems] == [
        f"{place}/etc/config.d/x.toml:3",
        f"{place}/etc/config.toml",
    ]
    assert "at line 1" in found.problems[1].text
    assert origins(found, "storage.durability") == [("none", f"{place}/etc/config.d/x.toml:2", ())]


def test_flags_and_environment_are_held_against_what_is_installed(place):
    found = whole(place, {"driver_option": ["indx=on", "alone"]}, {"COWSHED_DRIVER": "overlay"})
    assert [problem.text for problem in found.problems] == [
        "driver overlay has no option indx (option --driver-option)",
        "--driver-option alone is not NAME=VALUE",
    ]
    (wrong,) = whole(place, environ={"COWSHED_DRIVER": "overlya"}).problems
    assert wrong.text == "driver overlya is not installed (environment variable COWSHED_DRIVER)"
    (missing,) = whole(place, {"config": str(place / "none")}).problems
    assert missing.text == f"there is no configuration file {place}/none"
    (ok, *none) = whole(place, {"runtime": "none"}).problems
    assert (ok.text, none) == ("runtime none is neither native nor in [runtimes] nor a program (option --runtime)", [])
