"""Namespaces: new, inherited, joined (config-linux.md, Namespaces and Offset for Time Namespace)."""

import os
import subprocess
import time
from pathlib import Path

import pytest
from cowshed_testing import kernels

from cowshed_linux import process
from cowshed_runtime import spec

FILES = {"pid": "pid", "network": "net", "mount": "mnt", "ipc": "ipc", "uts": "uts", "user": "user",
         "cgroup": "cgroup", "time": "time"}  # fmt: skip


def spaces(*kinds: str, **paths: str) -> list[dict]:
    return [{"type": kind} for kind in kinds] + [{"type": kind, "path": path} for kind, path in paths.items()]


DETACHED = "nothing can be mounted on a root that is attached nowhere before"


def link(kind: str, pid: int | str = "self") -> str:
    return os.readlink(f"/proc/{pid}/ns/{FILES[kind]}")


@pytest.mark.parametrize("kind", ["pid", "network", "ipc", "uts", "cgroup", "time", "mount"])
def test_a_missing_namespace_is_that_of_the_runtime(box, kind):
    if kind == "mount":
        kernels.needs(6, 15, DETACHED)
    box.linux["namespaces"] = spaces(*(FILES.keys() - {kind, "user"}))
    if kind == "uts":
        del box.config["hostname"]
    started = box.start("/bin/sleep", "60")
    assert link(kind, started.pid) == link(kind)
    for other in FILES.keys() - {kind, "user"}:
        assert link(other, started.pid) != link(other), other
    box.group.kill()


@pytest.mark.parametrize("kind", ["pid", "network", "ipc", "uts", "cgroup", "time"])
def test_a_namespace_by_path(box, kind):
    box.linux["namespaces"].append({"type": "time"})
    with box.beside() as first:
        paths = {kind: f"/proc/{first.pid}/ns/{FILES[kind]}"}
        box.linux["namespaces"] = spaces(*(FILES.keys() - {kind, "user"}), **paths)
        if kind == "uts":
            del box.config["hostname"]
        started = box.start("/bin/sleep", "60")
        assert link(kind, started.pid) == link(kind, first.pid) != link(kind)


def test_a_mount_namespace_by_path(box):
    """The container is in it, with a root that nobody else sees; names of the host are those in there."""
    kernels.needs(6, 15, DETACHED)
    script = f"mount -t tmpfs other {box.cache} && mkdir {box.cache}/below && echo up && exec sleep 60"
    words = ["unshare", "-m", "--propagation", "private", "sh", "-c", script]
    other = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)
    try:
        assert other.stdout is not None
        assert other.stdout.readline() == "up\n"
        before = Path(f"/proc/{other.pid}/mountinfo").read_text()
        box.linux["namespaces"] = spaces(*(FILES.keys() - {"mount", "user"}), mount=f"/proc/{other.pid}/ns/mnt")
        box.config["mounts"].append({"destination": "/seen", "source": f"{box.folder}/cache", "options": ["bind"]})
        assert "by its path there" in str(box.refused())
        box.by_path = True
        box.config["root"]["path"] = str(box.rootfs)
        script = "touch /tmp/mine; stat -c %t:%T /dev/null; cat /proc/keys | wc -c; ls /seen; sleep 60"
        started = box.start("/bin/sh", "-c", script)
        assert [started.line() for _ in range(3)] == ["1:3", "0", "below"]
        assert link("mount", started.pid) == link("mount", other.pid) != link("mount")
        assert Path(f"/proc/{other.pid}/mountinfo").read_text() == before, "the namespace has the container's mounts"
        done = box.exec(started, "/bin/sh", "-c", "ls /tmp")
        assert done.out.split() == ["mine"], "exec is not in the container's root"
        box.group.kill()
    finally:
        other.kill()
        other.wait()
        assert other.stdout is not None
        other.stdout.close()


def test_a_shared_mount_namespace_sees_no_mounts_of_the_container(box):
    kernels.needs(6, 15, DETACHED)
    with open("/proc/self/mountinfo") as f:
        before = {line.split()[4] for line in f}
    box.linux["namespaces"] = spaces(*(FILES.keys() - {"mount", "user"}))
    box.config["root"]["readonly"] = True
    started = box.start(
        "/bin/sh", "-c", "touch /x || echo sealed; echo 1 > /proc/sys/vm/swappiness || echo kept; sleep 60"
    )
    assert [started.line(), started.line()] == ["sealed", "kept"]
    with open("/proc/self/mountinfo") as f:
        new = {line.split()[4] for line in f} - before
    assert not [path for path in new if str(box.folder) in path]
    assert os.listdir(box.rootfs / "dev") == []
    box.group.kill()


@pytest.mark.parametrize("kind", ["pid", "ipc", "uts", "cgroup", "time", "network", "mount", "user"])
def test_a_path_of_another_type(box, kind):
    """`The runtime MUST generate an error if path is not associated with a namespace of type type`."""
    other = "net" if kind != "network" else "uts"
    box.linux["namespaces"] = [entry for entry in box.linux["namespaces"] if entry["type"] != kind]
    box.linux["namespaces"].append({"type": kind, "path": f"/proc/self/ns/{other}"})
    error = box.refused()
    assert error.stage == "namespaces"
    assert f"/proc/self/ns/{other} is no {kind} namespace but a" in str(error)


@pytest.mark.parametrize("path", ["/etc/passwd", "/no/such", "/dev/null"])
def test_a_path_that_is_no_namespace(box, path):
    box.linux["namespaces"] = spaces("mount", "uts", network=path)
    assert path in str(box.refused())


def test_a_type_that_is_given_twice(box):
    box.process["args"] = ["true"]
    box.linux["namespaces"].append({"type": "network", "path": "/proc/1/ns/net"})
    assert "network is given twice" in "; ".join(map(str, spec.validate(box.config)))


def test_clocks_of_a_time_namespace(box):
    """Set before the first process is in it, so that it sees nothing else."""
    box.linux["namespaces"].append({"type": "time"})
    box.linux["timeOffsets"] = {"monotonic": {"secs": 3600, "nanosecs": 5}, "boottime": {"secs": 86400}}
    done = box.sh("cat /proc/self/timens_offsets /proc/uptime")
    lines = [line.split() for line in done.out.splitlines()]
    assert lines[:2] == [["monotonic", "3600", "5"], ["boottime", "86400", "0"]], done
    assert float(lines[2][0]) >= time.clock_gettime(time.CLOCK_BOOTTIME) + 86400 - 120


def test_clocks_in_a_user_namespace(box):
    box.in_user_namespace()
    box.linux["namespaces"].append({"type": "time"})
    box.linux["timeOffsets"] = {"boottime": {"secs": 50}}
    started = box.start("/bin/sh", "-c", "cat /proc/self/timens_offsets; sleep 60")
    assert started.line().split() == ["monotonic", "0", "0"]
    assert started.line().split() == ["boottime", "50", "0"]
    done = box.exec(started, "/bin/readlink", "/proc/self/ns/time")
    assert done.out.strip() == link("time", started.pid) != link("time")
    box.group.kill()


def test_an_offset_that_the_kernel_refuses(box):
    box.linux["namespaces"].append({"type": "time"})
    box.linux["timeOffsets"] = {"monotonic": {"secs": -(2**60)}}
    assert box.refused().stage == "namespaces"


@pytest.mark.parametrize(
    ("offsets", "said"),
    [
        ({"realtime": {"secs": 1}}, "'realtime' is no clock"),
        ({"monotonic": {"nanosecs": 10**9}}, "must be between"),
        ({"boottime": {"secs": 1}}, "needs a new time namespace"),
    ],
)
def test_rules_of_offsets(box, offsets, said):
    box.process["args"] = ["true"]
    box.linux["timeOffsets"] = offsets
    assert said in "; ".join(map(str, spec.validate(box.config)))


def test_names_of_the_host(box):
    host = os.uname().nodename
    box.config["hostname"], box.config["domainname"] = "inside", "example.org"
    assert box.sh("hostname; cat /proc/sys/kernel/domainname").out.split() == ["inside", "example.org"]
    assert os.uname().nodename == host


def test_hooks_are_in_the_namespaces_of_the_runtime(box):
    """Also when the container has joined another pid namespace."""
    with box.beside() as first:
        hook = box.folder / "hook"
        hook.write_text(f"#!/bin/sh\nreadlink /proc/self/ns/pid >> {box.folder}/said\n")
        hook.chmod(0o755)
        box.config["hooks"] = {kind: [{"path": str(hook)}] for kind in ("createRuntime", "poststart")}
        box.linux["namespaces"] = spaces(*(FILES.keys() - {"pid", "user"}), pid=f"/proc/{first.pid}/ns/pid")
        box.start("/bin/sleep", "60")
        assert (box.folder / "said").read_text().split() == [link("pid")] * 2


def test_a_process_that_joins_is_reaped_by_the_nearest_subreaper(box):
    """The process in between has gone, and with it the launcher."""
    with box.beside() as first:
        box.linux["namespaces"] = spaces(*(FILES.keys() - {"pid", "user"}), pid=f"/proc/{first.pid}/ns/pid")
        started = box.start("/bin/sh", "-c", "exit 7")
        assert os.waitpid(started.pid, process.WALL)[1] >> 8 == 7
        started.status = 7
