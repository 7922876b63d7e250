"""What has been built is found again, and only what is whole."""

import contextlib
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from cowshed_vm import cache as caches
from cowshed_vm.cache import Cache, key
from cowshed_vm.errors import NotHere

HERE = Path(__file__).parents[1]


def test_a_key_changes_with_every_part_and_with_where_a_part_ends():
    assert key("a", "b") == key("a", b"b")
    assert len({key("a", "b"), key("ab"), key("b", "a"), key("a", "b", ""), key("a", "c")}) == 5


def test_a_recipe_is_the_text_of_its_modules():
    assert caches.recipe("root.py", "ext4.py").startswith((HERE / "cowshed_vm/root.py").read_bytes())
    assert key(caches.recipe("root.py")) != key(caches.recipe("ext4.py"))


def test_an_entry_is_built_once(tmp_path):
    store, built = Cache(tmp_path), []

    def build(folder):
        built.append(folder)
        (folder / "it").write_text("whole")

    first = store.entry("things", "a", build)
    assert store.entry("things", "a", build) == first
    assert store.entry("things", "b", build) != first
    assert (first / "it").read_text() == "whole"
    assert len(built) == 2
    assert not any((tmp_path / "building").iterdir())


def test_a_build_that_failed_does_not_count_and_leaves_nothing_to_the_next(tmp_path):
    store = Cache(tmp_path)

    def fail(folder):
        (folder / "half").write_text("")
        raise RuntimeError

    with pytest.raises(RuntimeError):
        store.entry("things", "a", fail)
    assert not (tmp_path / "things/a").exists()
    made = store.entry("things", "a", lambda folder: (folder / "it").touch())
    assert os.listdir(made) == ["it"]


CHILD = """
import os, sys
sys.path.insert(0, sys.argv[1])
from pathlib import Path
from cowshed_vm.cache import Cache
def build(folder):
    with open(sys.argv[3], "a") as log:
        log.write(f"{os.getpid()}\\n")
    (folder / "half").touch()
    print("building", flush=True)
    if sys.stdin.readline() == "":
        os.kill(os.getpid(), 9)
    (folder / "it").touch()
print(Cache(Path(sys.argv[2])).entry("things", "a", build), flush=True)
"""


def child(folder):
    words = [sys.executable, "-c", CHILD, str(HERE), str(folder / "cache"), str(folder / "log")]
    return subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def test_of_two_builds_at_once_one_builds_and_the_other_waits_for_it(tmp_path):
    with child(tmp_path) as one:
        assert one.stdout.readline() == "building\n"
        with child(tmp_path) as two:
            said, _ = one.communicate("go on\n")
            assert two.communicate()[0] == said == f"{tmp_path}/cache/things/a\n"
    assert (tmp_path / "log").read_text() == f"{one.pid}\n"


def test_when_a_builder_is_killed_the_next_one_begins_again(tmp_path):
    with child(tmp_path) as one:
        assert one.stdout.readline() == "building\n"
        with child(tmp_path) as two:
            one.communicate("")
            assert one.returncode == -9
            assert two.communicate("go on\n")[0] == f"building\n{tmp_path}/cache/things/a\n"
    assert sorted(os.listdir(tmp_path / "cache/things/a")) == ["half", "it"]


def test_what_nobody_used_for_a_month_is_thrown_away(tmp_path):
    store = Cache(tmp_path)
    old, new = (store.entry("things", name, lambda folder: None) for name in ("old", "new"))
    long_ago = time.time() - caches.UNUSED - 60
    os.utime(old, (long_ago, long_ago))
    store.prune("things")
    assert (old.exists(), new.exists()) == (False, True)
    store.entry("things", "newer", lambda folder: None)
    os.utime(new, (time.time() - caches.SOON - 60,) * 2)
    store.prune("things", keep=1)
    assert os.listdir(tmp_path / "things") == ["newer"]


def test_what_another_run_is_about_to_use_is_kept(tmp_path):
    """More trees than are kept ask for an entry at once: each finds the one that it was given."""
    store = Cache(tmp_path)
    for name in "abcd":
        store.entry("things", name, lambda folder: None)
        store.prune("things", keep=1)
    assert sorted(os.listdir(tmp_path / "things")) == list("abcd")


def test_two_prunes_at_once(tmp_path, monkeypatch):
    """One may have thrown away what the other has seen."""
    store = Cache(tmp_path)
    old = store.entry("things", "old", lambda folder: None)
    os.utime(old, (0, 0))

    @contextlib.contextmanager
    def lock(name):
        old.rmdir()
        yield

    monkeypatch.setattr(store, "lock", lock)
    store.prune("things")
    assert not os.listdir(tmp_path / "things")


def test_too_little_space_is_told(tmp_path):
    Cache(tmp_path).require_space(1)
    with pytest.raises(NotHere, match=r"free space.*COWSHED_VM_CACHE"):
        Cache(tmp_path).require_space(1 << 40)
