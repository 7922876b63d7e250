"""Settings: which source wins, what files may say, and the cache of what they said."""

import json
import os
import re
import sys
import time
from pathlib import Path

import pytest

from cowshed.config import files, settings
from cowshed.errors import ConfigError


@pytest.fixture
def place(tmp_path, monkeypatch):
    """System and user configuration folders of a host of its own."""
    monkeypatch.setattr(settings, "SYSTEM_FOLDER", str(tmp_path / "etc"))
    (tmp_path / "etc/config.d").mkdir(parents=True)
    (tmp_path / "home/cowshed/config.d").mkdir(parents=True)
    return tmp_path


def load(place, flags=None, environ=None):
    places = {"root": str(place / "store"), "run_root": str(place / "run")}
    return settings.load({**places, **(flags or {})}, {"XDG_CONFIG_HOME": str(place / "home"), **(environ or {})})


def write(path, text):
    path.write_text(text)
    os.utime(path, (time.time() - 60,) * 2)


def say(path, driver):
    write(path, f'[storage]\ndriver = "{driver}"\n')


def test_the_strongest_source_wins_and_each_one_is_remembered(place):
    say(place / "etc/config.toml", "a")
    assert load(place).driver == "a"
    say(place / "etc/config.d/10.toml", "b")
    assert load(place).driver == "b"
    say(place / "etc/config.d/20.toml", "c")
    assert load(place).driver == "c"
    say(place / "home/cowshed/config.toml", "d")
    assert load(place).driver == "d"
    say(place / "home/cowshed/config.d/00.toml", "e")
    assert load(place).driver == "e"
    assert load(place, environ={"COWSHED_DRIVER": "f"}).driver == "f"
    told = load(place, {"driver": "g"}, {"COWSHED_DRIVER": "f"})
    assert told.driver == "g"
    assert told.driver_from == "option --driver"
    assert [one.value for one in told.drivers_said] == ["g", "f", "e", "d", "c", "b", "a"]
    assert [os.path.basename(path) for path in told.files] == [
        "config.toml", "10.toml", "20.toml", "config.toml", "00.toml",
    ]  # fmt: skip


def test_a_named_file_replaces_the_usual_ones(place):
    say(place / "etc/config.toml", "a")
    say(place / "other.toml", "z")
    assert load(place, {"config": str(place / "other.toml")}).driver == "z"
    assert load(place, environ={"COWSHED_CONFIG": str(place / "other.toml")}).driver == "z"
    with pytest.raises(ConfigError, match="there is no configuration file"):
        load(place, {"config": str(place / "missing.toml")})


def test_tables_of_several_files_are_merged(place):
    write(
        place / "etc/config.toml",
        '[storage.drivers.overlay]\nindex = "on"\nxino = "on"\n[registries."a.example"]\nx = 1\n',
    )
    write(
        place / "home/cowshed/config.toml", '[storage.drivers.overlay]\nxino = "off"\n[registries."b.example"]\ny = 2\n'
    )
    told = load(place)
    assert told.options_of("overlay") == {"index": "on", "xino": "off"}
    assert set(told.registries) == {"a.example", "b.example"}


def test_options_of_the_command_line_are_for_the_chosen_driver(place):
    write(place / "etc/config.toml", '[storage.drivers.overlay]\nindex = "on"\n')
    told = load(place, {"driver": "copy", "driver_option": ["a=1", "b=x=y"]})
    assert told.options_of("copy") == {"a": "1", "b": "x=y"}
    assert told.options_of("overlay") == {"index": "on"}
    unsaid = load(place, {"driver_option": ["a=1"]})
    assert unsaid.options_of("overlay") == {"index": "on", "a": "1"}
    with pytest.raises(ConfigError, match="write NAME=VALUE"):
        load(place, {"driver_option": ["alone"]})


def test_a_runtime_may_be_named_by_flag_environment_and_file(place):
    assert (load(place).runtime, load(place).runtime_from) == ("native", "the default")
    write(place / "etc/config.toml", '[runtime]\ndefault = "crun"\nbinaries.crun = "/usr/bin/crun"\n')
    assert load(place).runtime == "crun"
    assert load(place).runtimes == {"crun": {"path": "/usr/bin/crun"}}
    assert load(place, environ={"COWSHED_RUNTIME": "runc"}).runtime == "runc"
    assert load(place, {"runtime": "native"}, {"COWSHED_RUNTIME": "runc"}).runtime == "native"


def test_places_follow_the_environment_and_the_user(place, monkeypatch):
    assert settings.load({}, {"COWSHED_ROOT": "/a", "COWSHED_RUN_ROOT": "/b", "HOME": "/nobody"}).root == "/a"
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    told = settings.load({}, {"HOME": "/nobody"})
    assert (told.root, told.run_root) == ("/var/lib/cowshed", "/run/cowshed")
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    plain = settings.load({}, {"HOME": "/home/u", "XDG_RUNTIME_DIR": "/run/user/1000"})
    assert (plain.root, plain.run_root) == ("/home/u/.local/share/cowshed", "/run/user/1000/cowshed")
    other = settings.load({}, {"HOME": "/home/u", "XDG_DATA_HOME": "/data", "XDG_RUNTIME_DIR": "not/absolute"})
    assert (other.root, other.run_root) == ("/data/cowshed", "/tmp/cowshed-1000")


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ('[storag]\ndriver = "x"', "storag is no setting: did you mean storage?"),
        ('[storage]\ndrivr = "x"', "storage.drivr is no setting: did you mean storage.driver?"),
        ("[storage]\ndriver = 3", "storage.driver is text in quotes, not 3"),
        ('[storage]\ndurability = "comit"', "storage.durability is commit or none, not 'comit': did you mean commit?"),
        ("[storage.drivers]\noverlay = 1", "storage.drivers.overlay is a table, not 1"),
        ("[storage.drivers.overlay]\nindex = [1]", "overlay.index is text, a whole number, true or false"),
        ('[runtime.binaries]\ncrun = "crun"', "runtime.binaries.crun is an absolute path, not 'crun'"),
        ('registries."docker.io" = 1', 'registries."docker.io" is a table'),
        ("[storage\n", "(at line 1"),
        ('storage.driver = "a"\nstorage.driver = "b"', "Cannot overwrite a value"),
    ],
)  # fmt: skip
def test_a_wrong_file_is_named_with_the_setting_and_what_would_be_right(place, text, told):
    write(place / "etc/config.toml", text)
    with pytest.raises(ConfigError) as caught:
        load(place)
    line = f"{caught.value}: {caught.value.remedy}"
    assert told in line
    assert re.match(f"{place}/etc/config.toml(:[12])?: ", line), line


def test_the_files_of_the_manual_are_right(place):
    """Every [table] and key of docs/reference/configuration.md, as the schema takes it."""
    text = (Path(__file__).parents[3] / "docs/reference/configuration.md").read_text()
    examples = text.split("```toml\n")[1:]
    assert examples
    for example in examples:
        write(place / "etc/config.toml", example.partition("```")[0])
        assert load(place).files


# ---------------------------------------------------------------- the cache


@pytest.fixture
def parses(monkeypatch):
    """How often a file is parsed."""
    count = []
    real = files._parse
    monkeypatch.setattr(files, "_parse", lambda path: count.append(path) or real(path))
    return count


def test_a_file_is_parsed_once_until_it_changes(place, parses):
    say(place / "etc/config.toml", "a")
    assert [load(place).driver for _ in range(3)] == ["a"] * 3
    # a file that has just been written may be written again within one tick of the clock
    assert len(parses) in (1, 3)
    say(place / "etc/config.toml", "b")
    assert load(place).driver == "b"


def test_a_settled_file_is_taken_from_the_cache_without_tomllib(place, monkeypatch, parses):
    path = place / "etc/config.toml"
    say(path, "a")
    monkeypatch.setattr(files, "_SETTLED", -1)
    assert load(place).driver == "a"
    monkeypatch.setitem(sys.modules, "tomllib", None)
    assert load(place).driver == "a"
    assert len(parses) == 1


@pytest.mark.parametrize("damage", [b"", b"{", b"[99, {}]", b"[1, 5]", b"\xff"])
def test_a_damaged_cache_is_as_good_as_none(place, damage):
    say(place / "etc/config.toml", "a")
    (place / "run").mkdir()
    (place / "run/config.cache").write_bytes(damage)
    assert load(place).driver == "a"


def test_a_cache_that_another_user_could_write_is_not_believed(place, monkeypatch):
    say(place / "etc/config.toml", "a")
    monkeypatch.setattr(files, "_SETTLED", -1)
    load(place)
    cache = place / "run/config.cache"
    version, entries = json.loads(cache.read_text())
    (entry,) = entries.values()
    entry[1]["storage"]["driver"] = "planted"
    cache.write_text(json.dumps([version, entries]))
    assert load(place).driver == "planted", "this test plants what would be believed"
    cache.chmod(0o622)
    assert load(place).driver == "a"


def test_a_full_run_directory_keeps_nobody_from_working(place, monkeypatch):
    say(place / "etc/config.toml", "a")
    monkeypatch.setattr(files, "_SETTLED", -1)
    (place / "run").write_text("in the way")
    assert load(place).driver == "a"


def test_the_policy_of_images_is_the_first_that_is_there(place, monkeypatch):
    ours, theirs = str(place / "ours.json"), str(place / "none/theirs.json")
    monkeypatch.setattr(settings, "POLICIES", (ours, theirs))
    assert load(place).policy_file == ""
    (place / "none").mkdir()
    os.symlink("nowhere", theirs)
    assert load(place).policy_file == theirs  # whoever made the link meant that there is one
    (place / "ours.json").write_text("")
    assert load(place).policy_file == ours
    write(place / "etc/config.toml", '[trust]\npolicy = "/else/where.json"\n')
    assert load(place).policy_file == "/else/where.json"
    write(place / "etc/config.toml", '[trust]\npolicy = "where.json"\n')
    with pytest.raises(ConfigError, match=r"trust\.policy is an absolute path"):
        load(place)


def test_a_policy_that_cannot_be_looked_at_is_in_force(place, monkeypatch):
    def look(path):
        looked.append(path)
        raise PermissionError if path == "/hidden" else FileNotFoundError

    looked = []
    it = load(place)
    monkeypatch.setattr(settings, "POLICIES", ("/none", "/hidden"))
    monkeypatch.setattr(settings.os, "lstat", look)
    assert it.policy_file == "/hidden"
    assert looked == ["/none", "/hidden"]
