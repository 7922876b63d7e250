"""Subvolumes in subvolumes: found, refused at commit, removed."""

import os
import struct
import time

import pytest

from cowshed.storage import api
from cowshed.storage.errors import Unsupported
from cowshed_driver_btrfs import changes, ioctls, subvolumes
from cowshed_driver_btrfs.driver import CONTENT


@pytest.mark.parametrize(
    ("name", "number"),
    [
        # as `strace btrfs` and linux/btrfs.h have them
        ("_TREE_SEARCH_V2", 0xC0709411), ("_SPACE_INFO", 0xC0109414), ("_SYNC", 0x9408), ("_INO_PATHS", 0xC0389423),
        ("_SEND", 0x40489426), ("_QUOTA_CTL", 0xC0109428),
        ("_QGROUP_ASSIGN", 0x40189429), ("_QGROUP_CREATE", 0x4010942A), ("_QGROUP_LIMIT", 0x8030942B),
        ("_GET_SUBVOL_ROOTREF", 0xD000943D), ("_INO_LOOKUP_USER", 0xD000943E),
    ],
)  # fmt: skip
def test_requests_have_the_kernels_numbers(name, number):
    assert getattr(ioctls, name) == number


def test_an_item_is_read_as_numbers():
    assert ioctls.Item(1, 2, 3, struct.pack("<QQ", 4, 1 << 63) + b"rest").words() == (4, 1 << 63)


def test_all_are_found_the_deepest_first(place):
    top = f"{place}/top"
    subvolumes.create(top)
    os.makedirs(f"{top}/a/b")
    subvolumes.create(f"{top}/a/b/one")
    subvolumes.create(f"{top}/a/b/one/two")
    assert [path for path, _ in subvolumes.nested(top)] == ["a/b/one/two", "a/b/one"]
    for n in range(300):  # more than one answer of the kernel holds
        subvolumes.create(f"{top}/n{n}")
    found = subvolumes.nested(top)
    assert len(found) == len({id_ for _, id_ in found}) == 302
    assert subvolumes.remove(top)
    assert os.listdir(place) == []


def test_read_only_ones_in_read_only_ones_are_removed(place):
    top = f"{place}/top"
    for path in (top, f"{top}/one", f"{top}/one/two"):
        subvolumes.create(path)
    for path in (f"{top}/one/two", f"{top}/one", top):
        subvolumes.set_read_only(path, value=True)
    assert subvolumes.remove(top)
    assert os.listdir(place) == []
    assert subvolumes.remove(top), "absent is success"


def test_a_commit_refuses_them_by_name_and_changes_nothing(make):
    store = make()
    layer = store.new()
    with store.mounted(layer) as tree:
        os.mkdir(f"{tree.path}/var")
        subvolumes.create(f"{tree.path}/var/machines")
    with pytest.raises(Unsupported, match="var/machines"):
        store.commit(layer)
    assert [found.layer_kind for found in store.driver.scan()] == [api.Kind.ACTIVE]
    os.rmdir(f"{store.path(layer)}/{CONTENT}/var/machines")
    store.commit(layer)


def test_the_root_of_a_container_is_no_subvolume(make):
    """systemd-tmpfiles makes subvolumes (its lines of type v) where the root is one: by its inode number, 256."""
    store = make()
    with store.mounted(store.new()) as tree:
        assert os.stat(tree.path).st_ino != ioctls.FIRST_FREE


def test_a_sealed_layer_is_never_writable_again(make):
    store = make()
    committed = store.commit(store.new())
    assert subvolumes.read_only(store.path(committed))
    list(store.driver.changes(committed, store.new(committed)))
    store.commit(store.new(committed))
    assert subvolumes.read_only(store.path(committed))


def test_a_commit_that_died_before_the_seal_is_finished_when_it_matters(make):
    store = make()
    base = store.commit(store.new())
    layer = store.new(base)
    with store.mounted(layer) as tree, open(f"{tree.path}/new", "w"):
        pass
    committed = store.committed(layer)
    os.rename(store.path(layer), store.path(committed))
    assert not subvolumes.read_only(store.path(committed))
    with store.mounted(committed) as tree, pytest.raises(OSError, match="Read-only"):
        os.mkdir(f"{tree.path}/d")
    assert b"new" in {change.path for change in store.driver.changes(base, committed)}
    assert subvolumes.read_only(store.path(committed))


def test_trash_stays_in_its_directory(make):
    store = make()
    committed = store.commit(store.new())
    store.driver.remove(committed)
    assert os.listdir(f"{store.root}/committed") == [f"{committed.id}.trash"]
    assert [found.kind for found in store.driver.scan()] == [api.ObjectKind.TRASH]
    result = store.purge()
    assert result.objects_left == 0
    assert os.listdir(f"{store.root}/committed") == []


def test_space_that_is_still_to_come_is_told(make, monkeypatch):
    store = make()
    store.driver.remove(store.new())
    with monkeypatch.context() as busy:
        busy.setattr(subvolumes, "being_cleaned", lambda _: {4711})
        result = store.purge()
    assert (result.objects_left, result.space_pending) == (0, True)
    until = time.monotonic() + 60
    while store.purge().space_pending:
        assert time.monotonic() < until
        time.sleep(0.05)


def test_the_options_are_in_what_a_layer_writes(make):
    for name, given, flag in (("c", {"compression": "zstd"}, 0x4), ("n", {"nodatacow": "on"}, 0x800000)):
        store = make(name, **given)
        layer = store.new(store.commit(store.new()))
        with store.mounted(layer) as tree:
            from cowshed_linux import files

            handle = os.open(f"{tree.path}/new", os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC)
            assert files.inode_flags(handle) & flag
            os.close(handle)


def test_more_names_than_the_kernel_tells_mean_the_whole_tree(make):
    store = make()
    base = store.new()
    with store.mounted(base) as tree:
        with open(f"{tree.path}/first", "w"):
            pass
        for n in range(60):
            os.link(f"{tree.path}/first", f"{tree.path}/{n:0200}")
    committed = store.commit(base)
    layer = store.new(committed)
    with store.mounted(layer) as tree:
        os.chmod(f"{tree.path}/first", 0o600)
    assert list(store.driver.changes(committed, layer)) == [changes.EVERYTHING]


def test_a_tree_deeper_than_paths_can_say_is_compared_whole(make):
    store = make()
    committed = store.commit(store.new())
    layer = store.new(committed)
    with store.mounted(layer) as tree:
        at = os.open(tree.path, os.O_RDONLY)
        for _ in range(100):
            os.mkdir("n" * 50, dir_fd=at)
            below = os.open("n" * 50, os.O_RDONLY, dir_fd=at)
            os.close(at)
            at = below
        os.close(at)
    assert list(store.driver.changes(committed, layer)) == [changes.EVERYTHING]
    assert os.listdir(f"{store.root}/temp") == [], "the snapshot for the comparison was left"
