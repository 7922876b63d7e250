"""S7 of the crash sequences, with real commands on real file systems: a full disk still lets a user list and remove."""

from pathlib import Path

import pytest
from cowshed_testing import filesystems, leftovers


def fill(path):
    """Until not even a byte fits."""
    with open(path, "wb", buffering=0) as f:
        for size in (1 << 22, 1 << 16, 4096, 512, 1):
            while True:
                try:
                    f.write(b"x" * size)
                except OSError as error:
                    if error.errno != 28:
                        raise
                    break


@pytest.fixture(params=["ext4", "xfs", "btrfs"])
def disk(request, tmp_path):
    with filesystems.mounted(request.param, str(tmp_path)) as path:
        yield Path(path)


@pytest.fixture
def full(engine, disk, greeting):
    """Containers one (exited) and up (running) on a disk without a free byte."""
    engine.root = disk / "store"
    engine.ok("pull", "-q", greeting)
    engine.ok("tag", greeting, "test/other:1")
    engine.ok("run", "--name", "one", greeting, "sh", "-c", "echo x > /new; exit 3", status=3)
    engine.ok("create", "--name", "two", greeting, "true")
    engine.ok("run", "-d", "--name", "up", greeting, "sleep", "1000")
    fill(disk / "filler")
    engine.image = greeting
    yield engine
    engine.close()


@pytest.mark.slow
def test_s7_a_full_disk_still_lets_list_and_remove(full, disk):
    assert full.ok("ps", "-a", "--format", "{{.Names}} {{.State}}").splitlines() == [
        "up running", "two created", "one exited",
    ]  # fmt: skip
    assert full.ok("inspect", "--format", "{{.State.ExitCode}}", "one") == "3\n"
    assert len(full.ok("images", "-q").split()) >= 1
    for words in (("run", "--rm", full.image, "true"), ("create", full.image, "true")):
        done = full(*words)
        assert done.returncode == 125, done
        *warned, said = done.stderr.decode().splitlines()
        assert "is full" in said or "no space" in said.lower(), done.stderr
        assert all("copy of its database" in line for line in warned), done.stderr
    full.ok("rm", "one")
    full.ok("rm", "-f", "up")
    assert full.names() == ["two"]
    full.ok("system", "prune", "-f")
    assert full.names() == []
    full.ok("rmi", "test/other:1")
    full.ok("rmi", full.image)
    assert full.ok("images", "-q") == ""
    (disk / "filler").unlink()
    assert full.ok("run", "--rm", full.image, "cat", "three") == "three\n"
    assert full.ok("system", "check", "--deep") == "clean\n"
    assert leftovers.files(str(full.root), full.run_directory()) == []
    full.ok("rmi", full.image)
    assert (full.root / "ballast").stat().st_size == 4 << 20
