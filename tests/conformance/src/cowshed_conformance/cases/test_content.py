"""C: what is written in one layer, as it is seen there, below and above.

Most cases run the same steps on a layer and in a plain directory of the same file system, and compare the two trees.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import mmap
import os
import stat
import struct
from collections.abc import Callable, Sequence
from functools import partial

import pytest

from cowshed.storage import api
from cowshed_conformance import crash, marks, steps, tree
from cowshed_conformance.backing import Backing
from cowshed_conformance.harness import Store
from cowshed_conformance.marks import budget, claim, core, faults, full
from cowshed_conformance.steps import (
    Step,
    append,
    chmod,
    chown,
    device,
    directories,
    directory,
    fifo,
    file,
    link,
    move_directory,
    remove,
    remove_all,
    remove_xattr,
    rename,
    set_xattr,
    socket,
    symlink,
    times,
    truncate,
    write_at,
)  # fmt: skip
from cowshed_linux import mount, process

_LIBC = ctypes.CDLL(None, use_errno=True)
_AT_FDCWD, _NOREPLACE, _EXCHANGE = -100, 1, 2
_KEEP_SIZE, _PUNCH_HOLE = 1, 2
_FICLONE = 0x40049409
_UNSUPPORTED = (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOTTY, errno.EXDEV)
_MEBI = 1 << 20


def compare(store: Store, backing: Backing, *layers: Sequence[Step], ignore: tuple[str, ...] = ("mtime",)) -> api.Layer:
    """Each item is a layer's steps. The tree of the last, active one must be that of a plain directory in which all
    were done; no other may have changed; a new mount, a reopened store and the commit show the same."""
    plain = backing.place()
    os.mkdir(plain)
    below: api.Layer | None = None
    seen: list[tuple[api.Layer, tree.Tree]] = []
    for these in layers[:-1]:
        below = store.layer(*these, parent=below)
        steps.do(plain, *these)
        seen.append((below, store.look(below)))
    top = store.new(below, *layers[-1])
    steps.do(plain, *layers[-1])
    wanted = tree.read(plain)
    tree.same(wanted, store.look(top), "the layer differs from a plain directory", ignore=ignore)
    for layer, before in seen:
        tree.same(before, store.look(layer), "a layer below has changed")
    now = store.look(top)
    store.reopen()
    tree.same(now, store.look(top), "a new mount shows another tree")
    layer = store.commit(top)
    tree.same(now, store.look(layer), "the committed layer differs from the active one")
    return layer


def split(store: Store, lower: Sequence[Step]) -> api.Layer:
    """An active layer above one with these contents."""
    return store.new(store.layer(*lower))


def failure(run: Callable[[], object]) -> int:
    """The number of the error that a call fails with, 0 if it works."""
    try:
        run()
    except OSError as error:
        return error.errno or 0
    return 0


BIG = b"0123456789abcdef" * (1 << 16)


@core
def test_C01_appending_to_a_lower_file(store: Store, backing: Backing) -> None:
    layer = compare(store, backing, [file("a", BIG)], [append("a", b"tail")], [append("a", b"!")])
    data = store.read(layer, "a")
    assert (data[:16], data[-5:], len(data)) == (BIG[:16], b"tail!", len(BIG) + 5)


@core
def test_C02_four_bytes_in_the_middle_of_a_large_lower_file(store: Store, backing: Backing) -> None:
    compare(store, backing, [file("a", BIG)], [write_at("a", 500_001, b"ABCD")])


@core
@pytest.mark.parametrize("size", [0, 100, 3 * _MEBI])
def test_C03_truncating_a_lower_file(store: Store, backing: Backing, size: int) -> None:
    layer = compare(store, backing, [file("a", BIG)], [truncate("a", size)])
    assert store.read(layer, "a") == BIG[:size].ljust(size, b"\0")


@core
def test_C04_a_deleted_file_stays_gone_until_it_is_made_again(store: Store, backing: Backing) -> None:
    base = store.layer(file("a", b"1"), file("b", b"2"))
    without = store.layer(remove("a"), parent=base)
    above = store.layer(file("c", b"3"), parent=without)
    assert sorted(store.look(above)) == [".", "b", "c"]
    again = store.layer(file("a", b"4"), parent=above)
    assert store.read(again, "a") == b"4"
    assert store.read(base, "a") == b"1"
    compare(store, backing, [file("a", b"1")], [remove("a")], [file("c")], [file("a", b"new")], [remove("a")])


@core
def test_C05_a_directory_that_is_made_again_shows_nothing_of_the_old(store: Store, backing: Backing) -> None:
    old = [directory("d"), file("d/a"), directories("d/sub/deep"), file("d/sub/x")]
    layer = compare(store, backing, old, [remove_all("d"), directory("d", 0o700)], [file("d/new", b"1")])
    assert sorted(store.look(layer)) == [".", "d", "d/new"]


@core
def test_C06_nested_directories_made_and_removed_through_three_layers(store: Store, backing: Backing) -> None:
    deep = "/".join("abcdefghij")
    compare(
        store, backing,
        [directories(deep), file(f"{deep}/bottom", b"1"), file("a/b/c/side", b"2")],
        [remove_all("a/b/c/d"), directories("a/b/c/d/e"), file("a/b/c/d/e/new")],
        [remove_all("a"), directories(deep), file(f"{deep}/again")],
        [remove_all("a/b"), file("a/b", b"a file now")],
    )  # fmt: skip


KINDS: dict[str, Callable[[str], Sequence[Step]]] = {
    "file": lambda path: [file(path, b"x")],
    "dir": lambda path: [directory(path), file(f"{path}/in", b"y")],
    "link": lambda path: [symlink("target", path)],
    "fifo": lambda path: [fifo(path)],
    "device": lambda path: [device(path, 1, 3)],
}


@core
@pytest.mark.parametrize("old", ["file", "dir", "link"])
@pytest.mark.parametrize("new", list(KINDS))
def test_C07_replacing_one_kind_by_another(store: Store, backing: Backing, old: str, new: str) -> None:
    gone = remove_all("p") if old == "dir" else remove("p")
    compare(store, backing, KINDS[old]("p"), [gone, *KINDS[new]("p")], [file("else")])


@core
def test_C08_renaming_a_lower_file_also_over_another(store: Store, backing: Backing) -> None:
    lower = [file("a", b"1"), file("b", b"2"), directory("d"), file("d/c", b"3")]
    compare(store, backing, lower, [rename("a", "x"), rename("d/c", "b")], [rename("x", "d/y"), file("a", b"new")])


@core
def test_C09_renaming_a_lower_directory_is_as_declared(store: Store, backing: Backing) -> None:
    lower = [directory("d"), file("d/a", b"1"), directories("d/sub"), file("d/sub/b", b"2")]
    top = split(store, lower)
    with store.mount(top) as root:
        number = failure(lambda: os.rename(f"{root}/d", f"{root}/moved"))
    assert number in (0, errno.EXDEV), f"rename of a lower directory fails with {os.strerror(number)}, not EXDEV"
    claim("rename_lower_directory", store.capabilities.rename_lower_directory, number == 0, "renaming one works")
    compare(store, backing, lower, [move_directory("d", "moved")], [move_directory("moved/sub", "sub")])


@core
def test_C10_renaming_a_directory_of_the_layer_itself(store: Store, backing: Backing) -> None:
    compare(
        store, backing,
        [directory("gone"), file("gone/old", b"0"), directory("kept")],
        [directory("new"), file("new/a", b"1"), rename("new", "x"), rename("x", "new"), remove_all("gone"),
         rename("new", "gone"), directory("d2"), rename("d2", "kept/d2")],
        [file("gone/later")],
    )  # fmt: skip


def renameat2(root: str, old: str, new: str, flags: int) -> None:
    paths = (os.fsencode(f"{root}/{old}"), os.fsencode(f"{root}/{new}"))
    if _LIBC.renameat2(_AT_FDCWD, paths[0], _AT_FDCWD, paths[1], flags):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


@core
def test_C11_exchange_and_noreplace(store: Store, backing: Backing) -> None:
    top = split(store, [file("a", b"1"), file("b", b"2"), directory("d"), file("d/c", b"3")])
    plain = backing.place()
    os.mkdir(plain)
    steps.do(plain, file("a"), file("b"))
    with store.mount(top) as root:
        refused = {failure(partial(renameat2, at, "a", "b", _EXCHANGE)) for at in (plain, root)}
        if refused == {errno.EINVAL}:
            assert (steps.read(root, "a"), steps.read(root, "b")) == (b"1", b"2")
            marks.skip("file-system", "the file system does not exchange names, in a plain directory neither")
        renameat2(root, "a", "b", _EXCHANGE)
        with pytest.raises(FileExistsError):
            renameat2(root, "a", "b", _NOREPLACE)
        renameat2(root, "a", "n", _NOREPLACE)
        renameat2(root, "n", "b", _EXCHANGE)
        assert (steps.read(root, "n"), steps.read(root, "b")) == (b"2", b"1")
        steps.do(root, directory("own"), file("own/x", b"4"))
        renameat2(root, "own", "b", _EXCHANGE)
        assert (steps.read(root, "own"), steps.read(root, "b/x")) == (b"1", b"4")
    assert sorted(store.look(top)) == [".", "b", "b/x", "d", "d/c", "n", "own"]


@core
def test_C12_metadata_of_a_lower_file_changes_alone(store: Store, backing: Backing) -> None:
    moment = 1_234_567_890_123_456_789
    lower = [file("a", BIG), directory("d"), file("d/b", b"1"), symlink("a", "l"), times("a", 5), times("d", 6)]
    changes = [
        chmod("a", 0o4711), chown("a", 1000, 1001), times("a", moment), chown("l", 7, 8), chmod("d", 0o1777),
        times("d", moment + 1), times("l", -3),
    ]  # fmt: skip
    layer = compare(store, backing, lower, changes)
    found = store.look(layer)
    assert [found[name].mtime for name in ("a", "d", "l")] == [tree.cut(moment), tree.cut(moment + 1), tree.cut(-3)]
    assert found["a"].size == len(BIG)


@core
def test_C12_times_that_are_set_are_as_declared(store: Store) -> None:
    moment, unit = 1_234_567_890_123_456_789, store.capabilities.time_granularity
    top = split(store, [file("lower", b"1")])
    with store.mount(top) as root:
        steps.do(root, file("own"), times("own", moment), times("lower", moment))
        found = {os.stat(f"{root}/{name}").st_mtime_ns for name in ("own", "lower")}
    claim("time_granularity", {moment // unit * unit}, found, f"{moment} becomes")


@core
def test_C12_the_times_of_the_directories_above_a_changed_file_are_as_declared(store: Store) -> None:
    past = 1_234_567_890_123_456_789
    lower = [directories("d/sub"), file("d/sub/a", b"1"), times("d/sub", past), times("d", past), times(".", past)]
    top = split(store, lower)
    before = store.look(top)
    store.change(top, append("d/sub/a", b"2"))
    found = store.look(store.commit(top))
    kept = all(found[path].mtime == before[path].mtime for path in (".", "d", "d/sub"))
    claim(
        "parent_times_survive_copy_up", store.capabilities.parent_times_survive_copy_up, kept,
        "a write to a file leaves the times of the directories above it",
    )  # fmt: skip


@core
def test_C13_special_bits_are_kept_on_copy_up_and_lost_on_a_write_of_others(store: Store, backing: Backing) -> None:
    lower = [
        file("s", b"1"),
        chmod("s", 0o6755),
        directory("t"),
        chmod("t", 0o3777),
        file("w", b"1"),
        chmod("w", 0o6777),
    ]
    compare(store, backing, lower, [chown("t", 5, 5), chmod("t", 0o3777), set_xattr("s", "user.x", b"1")])
    top = split(store, lower)
    plain = backing.place()
    os.mkdir(plain)
    steps.do(plain, *lower)

    def write_as_nobody(fd: int) -> None:
        os.setgroups([])
        os.setresgid(65534, 65534, 65534)
        os.setresuid(65534, 65534, 65534)
        os.write(os.open("w", os.O_WRONLY, dir_fd=fd), b"2")

    with store.tree(top) as root:
        crash.in_child(lambda: write_as_nobody(root))
        plain_fd = os.open(plain, os.O_PATH | os.O_DIRECTORY)
        try:
            crash.in_child(lambda: write_as_nobody(plain_fd))
        finally:
            os.close(plain_fd)
    assert oct(store.look(top)["w"].mode) == oct(tree.read(plain)["w"].mode)


# vfs_cap_data of revision 2: cap_net_raw, effective
CAPABILITY = struct.pack("<IIIII", 0x02000001, 1 << 13, 0, 0, 0)


@core
def test_C14_file_capabilities_are_kept_by_chmod_and_lost_by_a_write(store: Store, backing: Backing) -> None:
    name = "security.capability"
    lower = [
        file("kept", b"1"),
        set_xattr("kept", name, CAPABILITY),
        file("lost", b"1"),
        set_xattr("lost", name, CAPABILITY),
    ]
    layer = compare(store, backing, lower, [chmod("kept", 0o700), append("lost", b"2")])
    found = store.look(layer)
    assert (name, CAPABILITY) in found["kept"].xattrs
    plain = backing.place()
    os.mkdir(plain)
    steps.do(plain, *lower, append("lost", b"2"))
    if os.listxattr(f"{plain}/lost"):
        marks.skip("file-system", "a file that is written to keeps its capabilities in a plain directory too")
    assert not found["lost"].xattrs


@core
def test_C15_extended_attributes_across_layers(store: Store, backing: Backing) -> None:
    lower = [
        file("a", b"1"), set_xattr("a", "user.one", b"1"), set_xattr("a", "user.two", b"2"), directory("d"),
        set_xattr("d", "user.dir", b"\0\xff"), set_xattr("a", "trusted.of.root", b"3"),
    ]  # fmt: skip
    changes = [
        set_xattr("a", "user.one", b"new"),
        set_xattr("d", "trusted.of.root", b"4"), set_xattr(".", "user.root", b"5"),
    ]  # fmt: skip
    if store.capabilities.xattrs_removable:
        changes += [remove_xattr("a", "user.two"), remove_xattr("d", "user.dir"), set_xattr("a", "user.empty", b"")]
    layer = compare(store, backing, lower, changes, [set_xattr("a", "user.three", b"3")])
    for node in store.look(layer).values():
        assert not [key for key, _ in node.xattrs if ".overlay." in key], "attributes of the driver itself are seen"
    for prefix in store.capabilities.lost_xattrs:  # these may be kept by some kernels; others must be
        assert not any(key.startswith(prefix) for key in ("user.one", "trusted.of.root", "security.capability"))


@core
def test_C15_an_attribute_that_is_removed_is_as_declared(store: Store) -> None:
    top = split(store, [file("a", b"1"), set_xattr("a", "user.one", b"1")])
    store.change(top, remove_xattr("a", "user.one"))
    left = store.look(store.commit(top))["a"].xattrs
    assert left in ((), (("user.one", b""),))
    claim("xattrs_removable", store.capabilities.xattrs_removable, not left, "it is gone")


def acl(*entries: tuple[int, int, int]) -> bytes:
    """(tag, permissions, id) … as system.posix_acl_* has it."""
    return struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *entry) for entry in entries)


_NOBODY = 0xFFFFFFFF
ACCESS = acl((1, 7, _NOBODY), (2, 5, 1234), (4, 5, _NOBODY), (16, 5, _NOBODY), (32, 0, _NOBODY))


@core
def test_C16_access_lists_are_kept_and_inherited(store: Store, backing: Backing) -> None:
    lower = [
        file("a", b"1"), set_xattr("a", "system.posix_acl_access", ACCESS), directory("d"),
        set_xattr("d", "system.posix_acl_default", ACCESS),
    ]  # fmt: skip
    plain = backing.place()
    os.mkdir(plain)
    number = failure(lambda: steps.do(plain, *lower))
    assert number in (0, errno.EOPNOTSUPP)
    if number:
        claim("acl", store.capabilities.acl, False, "the file system keeps no access lists")
        return
    claim("acl", store.capabilities.acl, True, "access lists are kept")
    layer = compare(store, backing, lower, [append("a", b"2"), directory("d/sub"), fifo("d/pipe")])
    assert any(key == "system.posix_acl_default" for key, _ in store.look(layer)["d/sub"].xattrs)


@core
def test_C16_an_access_list_of_a_lower_file_is_as_declared(store: Store) -> None:
    if not store.capabilities.acl:
        marks.skip("capability", "acl is denied")
    top = split(store, [file("a", b"1"), directory("d")])
    with store.mount(top) as root:
        steps.do(root, file("new"))
        if failure(lambda: steps.do(root, set_xattr("new", "system.posix_acl_access", ACCESS))):
            marks.skip("file-system", "the file system keeps no access lists")
        for name in ("a", "d"):
            number = failure(lambda name=name: steps.do(root, set_xattr(name, "system.posix_acl_access", ACCESS)))  # type: ignore[misc]
            assert number in (0, errno.EOPNOTSUPP)
            how = f"an access list of {name}, which is unchanged yet, is set or not"
            claim("acl_before_copy_up", store.capabilities.acl_before_copy_up, not number, how)
            steps.do(root, chmod(name, 0o700), set_xattr(name, "system.posix_acl_access", ACCESS))


@full
@pytest.mark.parametrize("size", [1000, 3000, 60_000])
def test_C17_large_attributes_as_on_the_file_system_itself(store: Store, backing: Backing, size: int) -> None:
    plain = backing.place()
    os.mkdir(plain)
    big = [file("a", b"1"), set_xattr("a", "user.big", b"x" * size)]

    wanted = failure(lambda: steps.do(plain, *big))
    top = store.new(store.layer(file("else")))
    with store.mount(top) as root:
        assert failure(lambda: steps.do(root, *big)) == wanted
    if not wanted:
        above = store.new(store.commit(top), append("a", b"2"))
        assert dict(store.look(above)["a"].xattrs) == {"user.big": b"x" * size}


@core
def test_C18_a_hard_link_to_a_lower_file_shares_its_data(store: Store) -> None:
    top = split(store, [file("a", b"1"), directory("d")])
    with store.mount(top) as root:
        steps.do(root, link("a", "d/b"), append("d/b", b"2"))
        assert steps.read(root, "a") == b"12"
        assert os.lstat(f"{root}/a").st_nlink == 2
        steps.do(root, remove("a"))
        assert os.lstat(f"{root}/d/b").st_nlink == 1
    layer = store.commit(top)
    assert store.read(layer, "d/b") == b"12"


@core
def test_C19_writing_through_one_of_two_lower_names_is_as_declared(store: Store) -> None:
    base = store.layer(file("a", b"1"), link("a", "b"))
    assert store.look(base)["a"].links == ("a", "b")
    top = store.new(base, append("a", b"2"))
    assert store.read(top, "a") == b"12"
    together = store.read(top, "b") == b"12"
    claim(
        "hard_links_survive_copy_up", store.capabilities.hard_links_survive_copy_up, together,
        "a write through one name shows under the other",
    )  # fmt: skip
    if not together:
        assert store.read(top, "b") == b"1"
    assert store.read(base, "b") == b"1"


@core
def test_C20_symbolic_links(store: Store, backing: Backing) -> None:
    scratch = backing.place()
    os.mkdir(scratch)
    long = "x/" * 2047
    if failure(lambda: os.symlink(long, f"{scratch}/l")) == errno.ENAMETOOLONG:
        long = "x/" * 500  # xfs takes no more than 1023 bytes
    lower = [
        symlink("nowhere", "dangling"), symlink("/etc/passwd", "absolute"), directory("d"), symlink("..", "d/up"),
        symlink(long, "long"), symlink("d", "c1"), symlink("c1", "c2"), file("d/a", b"1"),
    ]  # fmt: skip
    changes = [
        remove("c1"), directory("c1"), file("c1/own", b"2"), symlink("\udcff\n", "odd"), remove("dangling"),
        symlink("somewhere", "dangling"), append("d/up/d/a", b"3"),
    ]  # fmt: skip
    compare(store, backing, lower, changes)


@core
def test_C21_special_files(store: Store, backing: Backing) -> None:
    lower = [
        fifo("f"),
        socket("s"),
        device("null", 1, 3),
        device("loop", 7, 0, stat.S_IFBLK),
        device("big", 259, 65535),
    ]
    changes = [
        chmod("f", 0o600),
        chown("s", 3, 4),
        chmod("null", 0o666),
        remove("loop"),
        device("loop", 7, 1, stat.S_IFBLK),
    ]
    compare(store, backing, lower, changes, [remove("f"), fifo("f2")])


@core
def test_C21_the_device_that_overlay_uses_for_what_is_gone_is_as_declared(store: Store) -> None:
    top = split(store, [file("a", b"1")])
    with store.mount(top) as root:
        number = failure(lambda: os.mknod(f"{root}/zero", stat.S_IFCHR | 0o600, os.makedev(0, 0)))
    assert number in (0, errno.EPERM)
    seen = not number and "zero" in store.look(store.commit(top))
    claim("char_0_0_visible", store.capabilities.char_0_0_visible, seen, "a character device 0:0 is made and seen")


@core
def test_C22_names_of_every_kind(store: Store, backing: Backing) -> None:
    capabilities = store.capabilities
    whiteouts = [name for name in (".wh.x", ".wh..wh..opq") if not name.startswith(capabilities.reserved_names)]
    names: list[str | bytes] = [
        "n" * capabilities.name_max, b"\xff\xfe", "new\nline", *whiteouts, "-rf", "Case", "case", "ä", "a\u0308",
        " ", "\\", "'\"$", "...", "*", "\t", "a:b,c=d",
    ]  # fmt: skip
    lower = [step for name in names for step in (file(name, b"1"),)]
    below = [step for name in names for step in (append(name, b"2"),)]
    layer = compare(store, backing, lower, below, [remove(name) for name in names[::2]])
    left = {os.fsdecode(name) for name in names[1::2]}
    assert set(store.look(layer)) == {".", *left}


@core
def test_C22_names_that_cannot_be_are_as_declared(store: Store) -> None:
    """Those that are too long, and those that the back end keeps for itself: refused, and nothing is left."""
    longest, reserved = store.capabilities.name_max, store.capabilities.reserved_names
    assert 0 < longest <= 255
    top = split(store, [file("a", b"1")])
    with store.mount(top) as root:
        number = failure(lambda: steps.do(root, file("n" * (longest + 1))))
        claim("name_max", longest, longest if number == errno.ENAMETOOLONG else 255, "one byte more can be made")
        for beginning in reserved:
            assert failure(lambda name=f"{beginning}name": steps.do(root, file(name)))  # type: ignore[misc]
        for beginning in (".wh.", ".fuse_hidden", ".cowshed-"):
            number = failure(lambda name=f"{beginning}x": steps.do(root, file(name)))  # type: ignore[misc]
            claim("reserved_names", beginning in reserved, number != 0, f"{beginning}x can be made or not")
    left = set(store.look(store.commit(top)))
    assert left == {".", "a", *(f"{b}x" for b in (".wh.", ".fuse_hidden", ".cowshed-") if b not in reserved)}


@core
@budget(60)
def test_C23_holes_are_not_filled(store: Store) -> None:
    size = 1 << 30 if store.capabilities.sparse else 64 << 20  # what fills holes needs room for them
    base = store.layer(file("a"), truncate("a", size), write_at("a", size // 2, b"x" * 4096))
    top = store.new(base, write_at("a", 4096, b"y"))
    with store.mount(top) as root:
        status = os.stat(f"{root}/a")
        assert status.st_size == size
        with open(f"{root}/a", "rb") as opened:
            opened.seek(size // 2)
            assert opened.read(4097) == b"x" * 4096 + b"\0"
    claim(
        "sparse",
        store.capabilities.sparse,
        status.st_blocks * 512 <= 2 * _MEBI,
        f"{status.st_blocks * 512} bytes of it",
    )


@core
def test_C24_a_shared_mapping_is_seen_by_readers(store: Store) -> None:
    top = split(store, [file("a", b"0" * 8192)])
    with store.mount(top) as root:
        fd = os.open(f"{root}/a", os.O_RDWR)
        try:
            with mmap.mmap(fd, 8192) as mapped:
                mapped[4096:4100] = b"seen"
                mapped.flush()
                assert steps.read(root, "a")[4096:4100] == b"seen"
                steps.do(root, write_at("a", 0, b"back"))
                assert mapped[:4] == b"back"
        finally:
            os.close(fd)
    assert store.read(top, "a")[:4] == b"back"


@core
def test_C25_a_file_opened_before_the_first_write_is_as_declared(store: Store) -> None:
    top = split(store, [file("a", b"old")])
    with store.mount(top) as root:
        early = os.open(f"{root}/a", os.O_RDONLY)
        try:
            with mmap.mmap(early, 3, mmap.MAP_SHARED, mmap.PROT_READ) as mapped:
                assert mapped[:] == b"old"
                steps.do(root, write_at("a", 0, b"new"))
                assert steps.read(root, "a") == b"new"
                stale = os.pread(early, 3, 0) == b"old" or mapped[:] == b"old"
        finally:
            os.close(early)
    claim("stale_reads_after_copy_up", store.capabilities.stale_reads_after_copy_up, stale, "read or mapped, it is old")


@core
def test_C26_inode_numbers_are_as_declared(store: Store) -> None:
    base = store.layer(file("a", b"1"), directory("d"), file("d/b", b"2"), file("l1", b"3"), link("l1", "l2"))
    top = store.new(base)
    names = ("a", "d", "d/b", "l1", "l2")

    def numbers(root: str, order: int = 1) -> dict[str, tuple[int, int]]:
        found = {name: os.lstat(f"{root}/{name}") for name in names[::order]}
        return {name: (status.st_dev, status.st_ino) for name, status in found.items()}

    with store.mount(top) as root:
        before = numbers(root)
        steps.do(root, append("a", b"+"), chmod("d", 0o700), append("d/b", b"+"), append("l2", b"+"))
        after = numbers(root)
    with store.mount(top) as root:
        later = numbers(root, -1)  # some give them away in the order in which they are asked for
    stable = before == after and all(after[name][1] == later[name][1] for name in names)
    claim("inodes_stable", store.capabilities.inodes_stable, stable, "they stay over the first write and a new mount")


@full
def test_C27_the_working_directory_of_a_changed_and_of_a_removed_directory(store: Store, backing: Backing) -> None:
    top = split(store, [directories("d/sub"), file("d/a", b"1")])
    place = backing.place()
    os.mkdir(place)

    def work(fd: int) -> None:
        process.unshare(process.CLONE_NEWNS)  # of the child's own: gone with it
        mount.attach(fd, place)
        os.chdir(f"{place}/d/sub")
        assert os.getcwd() == f"{place}/d/sub"
        steps.do(place, chmod("d", 0o700), file("d/sub/new"), append("d/a", b"2"))
        assert os.getcwd() == f"{place}/d/sub"
        steps.do(place, remove("d/sub/new"), remove("d/sub"))
        with pytest.raises(FileNotFoundError):
            os.getcwd()

    with store.tree(top) as fd:
        crash.in_child(lambda: work(fd))


@core
def test_C28_a_lock_is_kept_when_the_file_is_copied_up(store: Store) -> None:
    top = split(store, [file("a", b"1")])
    with store.mount(top) as root:
        early = os.open(f"{root}/a", os.O_RDONLY)
        late = -1
        try:
            fcntl.flock(early, fcntl.LOCK_EX)
            late = os.open(f"{root}/a", os.O_RDWR)
            os.write(late, b"2")
            with pytest.raises(BlockingIOError):
                fcntl.flock(late, fcntl.LOCK_EX | fcntl.LOCK_NB)
            fcntl.flock(early, fcntl.LOCK_UN)
            fcntl.flock(late, fcntl.LOCK_EX | fcntl.LOCK_NB)
        finally:
            os.close(early)
            if late >= 0:
                os.close(late)


@faults
@budget(300)
def test_C29_a_directory_of_a_hundred_thousand_entries(store: Store) -> None:
    base = store.prepare(store.plan())
    count = 100_000
    with store.mount(base) as root:
        os.mkdir(f"{root}/d")
        for n in range(count):
            os.close(os.open(f"{root}/d/{n}", os.O_CREAT | os.O_WRONLY))
    top = store.new(store.commit(base))
    with store.mount(top) as root:
        assert len(os.listdir(f"{root}/d")) == count
        for n in range(0, count, 2):
            os.unlink(f"{root}/d/{n}")
        assert len(os.listdir(f"{root}/d")) == count // 2
    with store.mount(store.commit(top)) as root:
        assert {int(name) % 2 for name in os.listdir(f"{root}/d")} == {1}


def _direct(root: str) -> bytes:
    fd = os.open(f"{root}/a", os.O_RDWR | os.O_DIRECT)
    try:
        with mmap.mmap(-1, 4096) as page:
            page[:] = b"d" * 4096
            os.pwrite(fd, page, 4096)
    finally:
        os.close(fd)
    return steps.read(root, "a")


def _fallocate(mode: int) -> Callable[[str], bytes]:
    def run(root: str) -> bytes:
        fd = os.open(f"{root}/a", os.O_RDWR)
        try:
            if _LIBC.fallocate(fd, mode, ctypes.c_long(4096), ctypes.c_long(65536)):
                number = ctypes.get_errno()
                raise OSError(number, os.strerror(number))
        finally:
            os.close(fd)
        return steps.read(root, "a")

    return run


def _temporary(root: str) -> bytes:
    fd = os.open(root, os.O_TMPFILE | os.O_RDWR, 0o644)
    try:
        os.write(fd, b"made without a name")
        os.link(f"/proc/self/fd/{fd}", f"{root}/named", follow_symlinks=True)
    finally:
        os.close(fd)
    return steps.read(root, "named")


def _two(root: str, run: Callable[[int, int], object]) -> bytes:
    source, target = os.open(f"{root}/a", os.O_RDONLY), os.open(f"{root}/copy", os.O_RDWR | os.O_CREAT, 0o644)
    try:
        run(source, target)
    finally:
        os.close(source)
        os.close(target)
    return steps.read(root, "copy")


UNUSUAL: dict[str, Callable[[str], bytes]] = {
    "O_DIRECT": _direct,
    "fallocate keep-size": _fallocate(_KEEP_SIZE),
    "fallocate punch-hole": _fallocate(_PUNCH_HOLE | _KEEP_SIZE),
    "O_TMPFILE": _temporary,
    "copy_file_range": lambda root: _two(root, lambda a, b: os.copy_file_range(a, b, 8192)),
    "FICLONE": lambda root: _two(root, lambda a, b: fcntl.ioctl(b, _FICLONE, a)),
}


@full
@pytest.mark.parametrize("name", list(UNUSUAL))
def test_C30_unusual_calls_do_what_they_do_in_a_plain_directory(store: Store, backing: Backing, name: str) -> None:
    lower = [file("a", b"0" * 16384)]
    plain = backing.place()
    os.mkdir(plain)
    steps.do(plain, *lower)

    def outcome(root: str) -> bytes:
        made: list[bytes] = []
        number = failure(lambda: made.append(UNUSUAL[name](root)))
        assert number in (0, *_UNSUPPORTED), f"{name} fails with {os.strerror(number)}"
        return made[0] if made else b""

    wanted = outcome(plain)
    top = split(store, lower)
    with store.mount(top) as root:
        # A driver may lack a call that its file system has; what it has must do the same.
        assert outcome(root) in (wanted, b"")
    assert store.read(top, "a")[:4096] == b"0" * 4096
