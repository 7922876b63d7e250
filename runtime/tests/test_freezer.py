"""Freezing the groups of a container, on version 1 and on version 2."""

import os
import subprocess
import time
import uuid

import pytest

from cowshed_runtime.cgroup import freezer, layout
from cowshed_runtime.cgroup.files import read
from cowshed_runtime.cgroup.group import Group

LAYOUTS = {
    "host": layout.host,
    "v2": layout.Layout(
        "\n".join(
            line for line in read("/proc/self/mountinfo").splitlines() if " - cgroup2 " in line
        )
    ),
}  # fmt: skip


@pytest.fixture(params=LAYOUTS)
def spinning(request, monkeypatch):
    """A process in groups of its own that counts in a file of shared memory."""
    within = LAYOUTS[request.param]
    if request.param == "v2" and not within.v2:
        pytest.skip("no cgroup2 is mounted")
    group = Group(f"test-{uuid.uuid4().hex}", within=within)
    group.create({})
    code = "import mmap,sys\nm=mmap.mmap(int(sys.argv[1]),8)\nn=0\nwhile 1:\n n+=1\n m[:]=n.to_bytes(8,'little')"
    fd = os.memfd_create("counter")
    os.ftruncate(fd, 8)
    process = subprocess.Popen(["python3", "-c", code, str(fd)], pass_fds=[fd])
    for path in group.directories():
        with open(f"{path}/cgroup.procs", "w") as f:
            f.write(str(process.pid))

    def counted():
        return os.pread(fd, 8, 0)

    until = time.monotonic() + 30
    while counted() == bytes(8):
        assert time.monotonic() < until
        time.sleep(0.01)
    yield group, counted
    process.kill()
    freezer.thaw(group)
    process.wait()
    os.close(fd)
    group.remove()


def test_nothing_runs_while_it_is_frozen(spinning):
    group, counted = spinning
    freezer.freeze(group)
    assert freezer.frozen(group)
    there = counted()
    time.sleep(0.05)
    assert counted() == there
    freezer.thaw(group)
    assert not freezer.frozen(group)
    until = time.monotonic() + 30
    while counted() == there:
        assert time.monotonic() < until
        time.sleep(0.005)


def test_groups_that_are_gone():
    """The container ended just now: nothing of it runs."""
    freezer.freeze(Group("test-there-is-none"))
    freezer.thaw(Group("test-there-is-none"))


def test_a_host_without_a_freezer():
    with pytest.raises(OSError, match="no freezer"):
        freezer.freeze(Group("x", within=layout.Layout("")))


def test_what_does_not_freeze_goes_on(spinning, monkeypatch):
    group, counted = spinning
    monkeypatch.setattr(freezer, "_PATIENCE", -1.0)
    monkeypatch.setattr(freezer, "read", lambda path: "FREEZING")
    with pytest.raises(TimeoutError):
        freezer.freeze(group)
    there = counted()
    until = time.monotonic() + 30
    while counted() == there:
        assert time.monotonic() < until
        time.sleep(0.005)
