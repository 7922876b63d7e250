"""cowshed-runtime and control groups: where they are, who manages them, and what is told of them."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from cowshed_runtime.cgroup import layout

SUPPORT = Path(__file__).parents[2] / "tests/support"


def folders(path):
    return [path for path in (hierarchy + path for hierarchy in layout.host.hierarchies()) if os.path.exists(path)]


def test_groups_are_where_the_configuration_says(caller):
    name = caller.name()
    caller.config["linux"]["cgroupsPath"] = f"/cowshed-given/{name}"
    caller.process["args"] = ["sleep", "1000"]
    caller.write()
    caller.ok("create", "--bundle", caller.bundle, name)
    assert len(folders(f"/cowshed-given/{name}")) == len(list(layout.host.hierarchies()))
    caller.ok("delete", "--force", name)
    assert folders(f"/cowshed-given/{name}") == []
    for path in folders("/cowshed-given"):
        os.rmdir(path)


@pytest.mark.parametrize(
    ("flags", "path", "words"),
    [
        (("--cgroup-manager", "other"), "", "is cgroupfs, systemd or disabled"),
        (("--systemd-cgroup",), "/a/b", "slice:prefix:name"),
        (("--systemd-cgroup",), "no--slice.slice:a:b", "no name of a slice"),
        ((), "/a/../b", "must not contain `..`"),
        ((), "/", "must name a group"),
    ],
)
def test_groups_that_cannot_be(caller, flags, path, words):
    caller.config["linux"]["cgroupsPath"] = path
    caller.process["args"] = ["true"]
    caller.write()
    assert words in caller.refused(*flags, "create", "--bundle", caller.bundle, caller.name())
    assert caller.left() == []


def test_without_groups_it_stays_in_those_of_who_makes_it(caller):
    caller.config["linux"]["namespaces"] = [e for e in caller.config["linux"]["namespaces"] if e["type"] != "cgroup"]
    caller.process["args"] = ["cat", "/proc/self/cgroup"]
    caller.write()
    done = caller.call("--cgroup-manager", "disabled", "run", "--bundle", caller.bundle, caller.name())
    assert done.returncode == 0, done
    assert done.stdout == Path("/proc/self/cgroup").read_text()
    assert "device rules are not in force" in done.stderr
    name = caller.name()
    caller.process["args"] = ["sleep", "1000"]
    caller.write()
    caller.ok("--cgroup-manager", "disabled", "create", "--bundle", caller.bundle, name)
    assert folders(f"/cowshed/{name}") == []
    caller.ok("start", name)
    assert caller.ok("exec", name, "echo", "in") == "in\n"
    assert "freezer" in caller.refused("pause", name)
    caller.ok("delete", "--force", name)
    caller.config["linux"]["resources"] = {"pids": {"limit": 5}}
    caller.write()
    said = caller.refused("--cgroup-manager", "disabled", "create", "--bundle", caller.bundle, caller.name())
    assert "no groups, and so no pids cgroup controller" in said


def test_what_a_container_uses_is_told_in_the_shape_of_runc(caller):
    name = caller.create("sleep", "1000")
    caller.ok("start", name)
    told = json.loads(caller.ok("events", "--stats", name))
    assert (told["type"], told["id"]) == ("stats", name)
    assert {"cpu", "cpuset", "memory", "pids", "blkio", "hugetlb", "intel_rdt", "network_interfaces"} <= set(
        told["data"]
    )
    if layout.host.find("pids"):
        assert told["data"]["pids"]["current"] == 1
    assert "--interval" in caller.refused("events", "--interval", "soon", name)
    caller.ok("kill", name, "9")
    caller.wait(name, "stopped")
    assert "container not running" in caller.refused("events", "--stats", name)


def test_a_kill_for_want_of_memory_is_told(caller):
    if not layout.host.find("memory"):
        pytest.skip("this host has no memory controller")
    caller.config["linux"]["resources"]["memory"] = {"limit": 16 << 20, "swap": 16 << 20}
    script = "while [ ! -e /tmp/go ]; do sleep 0.1; done; dd if=/dev/zero of=/dev/null bs=100M count=1; sleep 1000"
    name = caller.create("sh", "-c", script)
    caller.ok("start", name)
    words = caller.words("events", "--interval", "100ms", name)
    watcher = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)
    assert json.loads(watcher.stdout.readline())["type"] == "stats"  # it watches from here on
    (caller.bundle / "rootfs/tmp/go").touch()
    while (told := json.loads(watcher.stdout.readline()))["type"] == "stats":
        continue
    assert told == {"type": "oom", "id": name}
    caller.ok("kill", name, "9")
    watcher.stdout.read()
    watcher.stdout.close()
    assert watcher.wait() == 0


def test_classes_of_service_cannot_be_changed_where_there_are_none(caller):
    name = caller.create("sleep", "1000")
    caller.ok("start", name)
    assert "without linux.intelRdt" in caller.refused("update", "--l3-cache-schema", "L3:0=f", name)


@pytest.mark.skipif(
    os.geteuid() != 0 or os.path.exists("/run/systemd/private") or not os.path.exists("/lib/systemd/systemd"),
    reason="needs root and a systemd that does not run",
)
def test_with_a_systemd_of_its_own(tmp_path):
    """The tests that need a real systemd, under one that is process 1 of new namespaces."""
    words = ["-q", "-p", "no:cacheprovider", "--basetemp", str(tmp_path / "inner"), "-k", "real_systemd"]
    file = Path(__file__).with_name("test_systemd.py")
    command = [SUPPORT / "under-systemd", Path(sys.prefix, "bin/pytest"), *words, file]
    done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "skipped" not in done.stdout
