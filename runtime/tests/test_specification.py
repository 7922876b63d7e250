"""The MUSTs of the runtime specification: the table of them names tests that exist, and here are those that no other
file has."""

import ast
import tomllib
from pathlib import Path

import pytest

from cowshed_runtime import launcher, spec
from cowshed_runtime.errors import LaunchError

HERE = Path(__file__).parent
MUST_KNOW = (
    "async atime bind defaults dev diratime dirsync exec iversion lazytime loud noatime nodev nodiratime noexec"
    " noiversion nolazytime norelatime nostrictatime nosuid private rbind relatime ro rprivate rshared rslave"
    " runbindable rw shared silent slave strictatime suid sync unbindable"
).split()


@pytest.fixture
def box(box):
    box.process["args"] = ["/bin/true"]
    return box


def functions(module: str) -> set[str]:
    tree = ast.parse((HERE / f"test_{module}.py").read_text())
    return {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}


def test_each_must_names_tests_that_exist():
    table = tomllib.loads((HERE / "specification.toml").read_text())
    known: dict[str, set[str]] = {}
    for section in table["section"]:
        for what, tests in section["musts"]:
            assert what, section["name"]
            assert tests, section["name"]
            if tests.startswith("because "):
                continue
            for test in tests.split():
                module, _, name = test.partition(":")
                names = known.setdefault(module, set()) or functions(module)
                known[module] = names
                assert name in names, f"{section['name']}: {test}"


def test_what_is_needed(box):
    for key in ("ociVersion", "root", "process"):
        config = {name: value for name, value in box.config.items() if name != key}
        assert any(str(problem).startswith(key) for problem in spec.validate(config)), key


@pytest.mark.parametrize("version", ["1.0.0", "1.0.2-dev", "1.3.0", "1.9.0"])
def test_versions(box, version):
    box.config["ociVersion"] = version
    assert spec.validate(box.config) == []
    for wrong in ("0.5.0", "2.0.0", "", "x"):
        box.config["ociVersion"] = wrong
        assert spec.validate(box.config), wrong


def test_a_root_that_is_not_there(box):
    box.config["root"]["path"] = str(box.folder / "missing")
    with pytest.raises(LaunchError, match="missing"):
        from_path(box)


def from_path(box):
    return box._fork(lambda stdio: launcher.launch(box.config, -1, stdio, group=box.group, cache=str(box.cache)))


def test_mounts_are_made_in_their_order(box):
    """The second hides the first; what is mounted in it later is seen."""
    for name in ("first", "second"):
        (box.folder / name).mkdir()
        (box.folder / name / "name").write_text(f"{name}\n")
        box.config["mounts"].append(
            {"destination": "/mnt", "type": "bind", "source": str(box.folder / name), "options": ["bind"]}
        )
    box.config["mounts"].append({"destination": "/mnt/below", "type": "tmpfs", "source": "tmpfs"})
    assert box.sh("cat /mnt/name; stat -f -c %T /mnt/below").out == "second\ntmpfs\n"


def test_a_relative_destination(box):
    box.config["mounts"].append({"destination": "rel/ative", "type": "tmpfs", "source": "tmpfs"})
    assert box.sh("stat -f -c %T /rel/ative").out == "tmpfs\n"


@pytest.mark.parametrize("word", MUST_KNOW)
def test_every_option_is_known(box, word):
    """In a bind mount, which takes all of them."""
    (box.folder / "volume").mkdir()
    kind = [] if word in ("bind", "rbind") else ["bind"]
    if word in ("sync", "dirsync", "lazytime", "async", "nolazytime", "iversion", "noiversion"):
        entry = {"type": "tmpfs", "source": "tmpfs", "options": [word]}  # of a file system
    else:
        entry = {"type": "bind", "source": str(box.folder / "volume"), "options": [*kind, word]}
    box.config["mounts"].append({"destination": "/mnt", **entry})
    assert box.run("/bin/true").status == 0


def test_mappings_come_in_pairs(box):
    box.config["mounts"].append({"destination": "/mnt", "type": "bind", "source": "/tmp", "options": ["bind", "idmap"],
                                 "uidMappings": [{"containerID": 0, "hostID": 0, "size": 1}]})  # fmt: skip
    assert spec.validate(box.config)


@pytest.mark.parametrize(("place", "value"), [
    ("process.cwd", "relative"),
    ("process.rlimits", [{"type": "RLIMIT_NONE", "soft": 1, "hard": 1}]),
    ("annotations", {"": "x"}),
    ("annotations", {"x": 1}),
    ("annotations", ["x"]),
    ("linux.namespaces", [{"type": "mount"}, {"type": "ipc", "path": "relative"}]),
    ("linux.namespaces", [{"type": "mount"}, {"type": "ipc"}, {"type": "ipc"}]),
    ("linux.namespaces", [{"type": "mount"}, {"type": "none"}]),
    ("linux.seccomp", {"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": [], "action": "SCMP_ACT_ERRNO"}]}),
    ("linux.maskedPaths", ["relative"]),
    ("linux.readonlyPaths", ["relative"]),
    ("linux.rootfsPropagation", "none"),
    ("process.capabilities", {"bounding": "CAP_CHOWN"}),
])  # fmt: skip
def test_what_is_refused(box, place, value):
    *above, last = place.split(".")
    at = box.config
    for name in above:
        at = at[name]
    at[last] = value
    box.config.pop("hostname")
    problems = spec.validate(box.config)
    assert problems
    assert all(str(problem).startswith(place) for problem in problems)


def test_what_is_not_known_is_ignored(box):
    box.config["unknown"] = {"x": [1]}
    box.config["annotations"] = {"org.example.unknown": "x", "org.opencontainers.image.os": "plan9"}
    box.process["unknown"] = box.linux["unknown"] = True
    assert box.run("/bin/true").status == 0


def test_what_is_not_done_is_refused(box):
    box.config["vm"] = {"kernel": {"path": "/vmlinuz"}}
    assert "vm: " in str(box.refused())


def test_another_file_where_a_device_is_wanted(box):
    (box.rootfs / "device").write_text("")
    box.linux["devices"] = [{"path": "/device", "type": "c", "major": 1, "minor": 3}]
    assert box.refused().stage == "devices"
