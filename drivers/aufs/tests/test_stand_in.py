"""The stand-in's own behaviour: a detached mount like any other, and nothing of it outlives the mount."""

import importlib.util
import os
import shutil
import signal
import time
from pathlib import Path

import pytest

from cowshed.storage import api

pytestmark = pytest.mark.skipif(
    os.geteuid() != 0 or not os.path.exists("/dev/fuse") or shutil.which("fuse-overlayfs") is None,
    reason="mounting by fuse-overlayfs needs root, /dev/fuse and the program",
)


@pytest.fixture(scope="module")
def mounted():
    spec = importlib.util.spec_from_file_location("fuse_overlayfs", Path(__file__).parent / "fuse_overlayfs.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.mounted


def serving(place):
    """The processes that have a file below place open and are the program."""
    found = []
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            if Path(f"/proc/{pid}/comm").read_text().strip() != "fuse-overlayfs":
                continue
            links = [os.readlink(f"/proc/{pid}/fd/{fd}") for fd in os.listdir(f"/proc/{pid}/fd")]
        except OSError:
            continue  # gone meanwhile, or ending
        if any(link.startswith(str(place)) for link in links):
            found.append(int(pid))
    return found


def none_serves(place):
    until = time.monotonic() + 30
    while serving(place):
        assert time.monotonic() < until, "the program outlives its mount"
        time.sleep(0.02)


@pytest.fixture
def plan(tmp_path):
    for name in ("branch", "one", "two"):
        (tmp_path / name).mkdir()
    (tmp_path / "one/a").write_text("one")
    (tmp_path / "two/a").write_text("two")
    (tmp_path / "two/b").write_text("two")
    return api.Aufs(tuple(str(tmp_path / name) for name in ("branch", "one", "two")), True)


def test_it_ends_with_the_last_descriptor_of_its_mount(tmp_path, plan, mounted):
    fd = mounted(plan)
    root = f"/proc/self/fd/{fd}"
    assert sorted(os.listdir(root)) == ["a", "b"]
    assert Path(f"{root}/a").read_text() == "one"
    os.unlink(f"{root}/b")
    held = os.open(f"{root}/a", os.O_RDONLY)
    os.close(fd)
    assert os.read(held, 3) == b"one"
    assert len(serving(tmp_path)) == 1
    os.close(held)
    none_serves(tmp_path)
    assert os.path.isfile(tmp_path / "branch/.wh.b"), "a deletion is told otherwise than by aufs"


def test_it_ends_with_the_process_that_has_the_mount(tmp_path, plan, mounted):
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        mounted(plan)
        os.write(writer, b"1")
        signal.pause()
    os.close(writer)
    assert os.read(reader, 1) == b"1"
    os.close(reader)
    assert len(serving(tmp_path)) == 1
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    none_serves(tmp_path)


def test_it_takes_no_more_branches_than_the_kernel_would(tmp_path, mounted):
    with pytest.raises(OSError, match="128 branches"):
        mounted(api.Aufs(tuple(str(tmp_path / str(n)) for n in range(128)), True))
