"""image mount, unmount and diff as a user sees them."""

import json
import os
import subprocess
from pathlib import Path

import pytest


@pytest.fixture
def mounted(pulled):
    path = Path(pulled.ok("image", "mount", pulled.image).strip())
    yield path
    pulled.ok("image", "unmount", "-a", "-f")


def test_an_image_is_read_where_it_is_mounted(pulled, mounted):
    assert sorted(os.listdir(mounted / "srv")) == ["one", "three"]
    with pytest.raises(OSError, match="Read-only"):
        (mounted / "srv/new").write_text("")
    assert pulled.ok("image", "mount", pulled.image).strip() == str(mounted)
    listed = [json.loads(line) for line in pulled.ok("image", "mount", "--format", "json").splitlines()]
    assert [(row["Image"], row["Mountpoint"]) for row in listed] == [(pulled.image, str(mounted))]
    pulled.ok("run", "--rm", pulled.image, "true")
    options = next(line for line in Path("/proc/self/mountinfo").read_text().splitlines() if f" {mounted} " in line)
    assert {"ro", "nosuid", "nodev"} <= set(options.split()[5].split(","))
    assert pulled.ok("image", "unmount", pulled.image).startswith("sha256:")
    assert not mounted.exists()
    assert pulled.ok("image", "mount", "--format", "{{.ID}}") == ""


def test_what_is_mounted_stays(pulled, mounted):
    done = pulled("rmi", "-f", pulled.image)
    assert done.returncode == 1
    assert b"is mounted" in done.stderr
    pulled.ok("image", "prune", "-a", "-f")
    pulled.ok("system", "prune", "-a", "-f")
    pulled.ok("storage", "gc", "-f")
    assert (mounted / "srv/one").read_text() == "one\n"
    pulled.ok("image", "unmount", pulled.image)
    pulled.ok("rmi", pulled.image)
    assert pulled.ok("images", "-q") == ""


def test_what_is_in_use_is_unmounted_by_force_only(pulled, mounted):
    user = subprocess.Popen(["sleep", "1000"], cwd=mounted / "srv")
    try:
        done = pulled("image", "unmount", pulled.image)
        assert done.returncode == 125
        assert b"is in use" in done.stderr
        pulled.ok("image", "unmount", "-f", pulled.image)
        assert pulled.ok("image", "mount", "--format", "{{.ID}}") == ""
    finally:
        user.kill()
        user.wait()


def test_what_is_left_of_a_mount_is_cleaned(pulled, mounted):
    pulled.ok("image", "unmount", pulled.image)
    mounted.mkdir()  # a command was killed before it mounted
    pulled.ok("system", "prune", "-f")
    assert not mounted.exists()


def test_the_difference_of_two_images(pulled):
    script = "rm one; echo longer text > three; mkdir -p /new; echo n > /new/file; rm -r /home; ln -s x /link"
    pulled.ok("run", "--name", "box", pulled.image, "sh", "-c", script)
    pulled.ok("commit", "box", "test/second")
    lines = pulled.ok("image", "diff", pulled.image, "test/second").splitlines()
    assert lines[-1] == "3 added, 3 changed, 2 removed; 10B -> 14B"
    assert lines[:-1] == [
        "C /", "D /home", "A /link", "A /new", "A /new/file 0B -> 2B", "C /srv", "D /srv/one 4B -> 0B",
        "C /srv/three 6B -> 12B",
    ]  # fmt: skip
    rows = [
        json.loads(x) for x in pulled.ok("image", "diff", "--format", "json", "test/second", pulled.image).splitlines()
    ]
    assert {row["Path"]: (row["Kind"], row["Before"], row["After"]) for row in rows if row["Kind"] != "C"} == {
        "/home": ("A", 0, 0), "/link": ("D", 0, 0), "/new": ("D", 2, 0), "/srv/one": ("A", 0, 4),
    }  # fmt: skip
    assert pulled.ok("image", "diff", pulled.image, pulled.image) == "0 added, 0 changed, 0 removed; 0B -> 0B\n"
