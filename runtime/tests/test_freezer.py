"""Freezing the groups of a container, on version 1 and on version 2."""

import os
import subprocess
import time
import uuid

import pytest

from cowshed_runtime import cgroup, freezer

LAYOUTS = {
    "host": cgroup.layout,
    "v2": cgroup.Layout(
        "\n".join(
            line for line in cgroup._read("/proc/self/mountinfo").splitlines() if " - cgroup2 " in line
        )
    ),
}  # fmt: skip


@pytest.fixture(params=LAYOUTS)
def spinning(request, monkeypatch):
    """A process in groups of its own that counts in a file of shared memory."""
    layout = LAYOUTS[request.param]
    if request.param == "v2" and not layout.v2:
        pytest.skip("no cgroup2 is mounted")
    monkeypatch.setattr(cgroup, "layout", layout)
    name = f"test-{uuid.uuid4().hex}"
    cgroup.create(name, {})
    code = "import mmap,sys\nm=mmap.mmap(int(sys.argv[1]),8)\nn=0\nwhile 1:\n n+=1\n m[:]=n.to_bytes(8,'little')"
    fd = os.memfd_create("counter")
    os.ftruncate(fd, 8)
    process = subprocess.Popen(["python3", "-c", code, str(fd)], pass_fds=[fd])
    for path in layout.directories(name):
        with open(f"{path}/cgroup.procs", "w") as f:
            f.write(str(process.pid))

    def counted():
        return os.pread(fd, 8, 0)

    until = time.monotonic() + 30
    while counted() == bytes(8):
        assert time.monotonic() < until
        time.sleep(0.01)
    yield name, counted
    process.kill()
    freezer.thaw(name)
    process.wait()
    os.close(fd)
    cgroup.remove(name)


def test_nothing_runs_while_it_is_frozen(spinning):
    name, counted = spinning
    freezer.freeze(name)
    there = counted()
    time.sleep(0.05)
    assert counted() == there
    freezer.thaw(name)
    until = time.monotonic() + 30
    while counted() == there:
        assert time.monotonic() < until
        time.sleep(0.005)


def test_groups_that_are_gone():
    """The container ended just now: nothing of it runs."""
    freezer.freeze("test-there-is-none")
    freezer.thaw("test-there-is-none")


def test_a_host_without_a_freezer(monkeypatch):
    monkeypatch.setattr(cgroup, "layout", cgroup.Layout(""))
    with pytest.raises(OSError, match="no freezer"):
        freezer.freeze("x")


def test_what_does_not_freeze_goes_on(spinning, monkeypatch):
    name, counted = spinning
    monkeypatch.setattr(freezer, "_PATIENCE", -1.0)
    monkeypatch.setattr(freezer, "_read", lambda path: b"FREEZING")
    with pytest.raises(TimeoutError):
        freezer.freeze(name)
    there = counted()
    until = time.monotonic() + 30
    while counted() == there:
        assert time.monotonic() < until
        time.sleep(0.005)
