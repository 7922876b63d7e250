"""A: archives applied to layers by the engine, through the mount that the driver describes."""

from __future__ import annotations

import bz2
import contextlib
import errno
import functools
import gzip
import hashlib
import itertools
import lzma
import os
import random
import signal
import stat
import tarfile
import threading
from collections.abc import Callable, Iterable, Iterator

import pytest

from cowshed.errors import ImageError, NoSpace, Tampered
from cowshed.layers.apply import apply
from cowshed.layers.unpack import unpack
from cowshed.storage import api
from cowshed.storage.errors import Cancelled
from cowshed_conformance import archive, crash, hoststate, marks, randoms, steps, tree
from cowshed_conformance.archive import member, pack
from cowshed_conformance.backing import Backing
from cowshed_conformance.harness import Store, sync
from cowshed_conformance.marks import budget, core, full
from cowshed_conformance.namespaces import as_plain_user
from cowshed_conformance.steps import chmod, chown, directory, file, set_xattr, symlink, times
from cowshed_conformance.target import Target, resolve
from cowshed_linux import paths

Member = tuple[tarfile.TarInfo, bytes]
DIR, LINK, SYMLINK, FIFO, CHAR = tarfile.DIRTYPE, tarfile.LNKTYPE, tarfile.SYMTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE
_PIECE = 1 << 16


def pieces(data: bytes) -> Iterator[bytes]:
    return (data[n : n + _PIECE] for n in range(0, len(data), _PIECE))


def digest(data: bytes) -> str:
    return "sha256:" + hashlib.sha256(data).hexdigest()


def image(store: Store) -> api.Layer:
    """Two layers, so that what is applied has to hide what lies in either."""
    base = store.layer(
        file("a", b"1"), file("old", b"4"), directory("d"), file("d/one", b"2"), directory("d/e"), file("d/e/two", b"3")
    )  # fmt: skip
    return store.layer(file("b", b"5"), file("d/three", b"6"), parent=base)


def applied(store: Store, parent: api.Layer | None, *members: Member) -> api.Layer:
    layer = store.new(parent)
    archive.unpack(store, layer, pack(members))
    return layer


def names(store: Store, layer: api.Layer) -> list[str]:
    return sorted(store.look(layer))[1:]


# ---------------------------------------------------------------- what a diff says, applied


@core
def test_A01_what_changed_applied_to_the_lower_layer_gives_the_upper_one(store: Store) -> None:
    below = image(store)
    upper = store.new(
        below, steps.remove("a"), steps.remove_all("d"), directory("d", 0o2770), file("d/four", b"7"), chown("d", 3, 4),
        file("suid", b"8"), chown("suid", 1, 2), chmod("suid", 0o6755), set_xattr("suid", "user.x", b"\0\xff"),
        steps.link("suid", "second"), symlink("/nowhere", "l"), chown("l", 5, 6), steps.fifo("p"),
        steps.device("null", 1, 3), file("sparse"), steps.truncate("sparse", 64 << 20),
        steps.write_at("sparse", 32 << 20, b"9"), file(b"odd \xff\n", b"10"), chmod("b", 0), times("b", 1_234_567_891),
        times("l", 10**18 + 1), times("d", 10**18 + 2), times(".", 10**18 + 3),
    )  # fmt: skip
    wanted = store.look(upper)
    _, data = archive.of_engine(store, below, upper)
    layer = store.new(below)
    archive.unpack(store, layer, data)
    tree.same(wanted, store.look(layer), "applied to the lower layer")
    layer = store.commit(layer)
    tree.same(wanted, store.look(layer), "applied and committed")
    if store.capabilities.sparse:
        assert allocated(store, layer, "sparse") < 4 << 20, "the holes of a file were filled"


def allocated(store: Store, layer: api.Layer, path: str) -> int:
    with store.mount(layer, read_only=True) as root:
        return os.stat(f"{root}/{path}").st_blocks * 512


@full
@budget(90)
def test_A02_random_layers_are_the_same_in_another_driver(
    store: Store, target: Target, backing: Backing, chance: random.Random
) -> None:
    other = resolve("overlay" if target.plugin.name == "copy" else "copy", {}, seed=target.seed, level=target.level)
    # A name that a copy-up parted from the others of its file, and that is as before otherwise, is no change.
    ignored = () if store.capabilities.hard_links_survive_copy_up else ("links",)
    with Store(other, backing.place()) as elsewhere:
        for _ in range(8):
            here: api.Layer | None = None
            there: api.Layer | None = None
            for depth in range(3):
                upper = store.new(here)
                with store.mount(upper) as root:
                    randoms.change(root, chance, 30)
                wanted = store.look(upper)
                _, data = archive.of_engine(store, here, upper)
                twin = elsewhere.new(there)
                archive.unpack(elsewhere, twin, data)
                found = elsewhere.look(twin)
                tree.same(wanted, found, f"layer {depth} of {target.name} in {other.name}", ignore=ignored)
                if not tree.differences(wanted, found):
                    _, again = archive.of_engine(elsewhere, there, twin)
                    assert digest(again) == digest(data), "the other driver's archive of the same layer has other bytes"
                here, there = store.commit(upper), elsewhere.commit(twin)


# ---------------------------------------------------------------- whiteouts


@core
def test_A03_plain_whiteouts_hide_files_and_directories_of_lower_layers(store: Store) -> None:
    below = image(store)
    before = store.look(below)
    layer = applied(store, below, member(".wh.a"), member("d/.wh.e"), member(".wh.missing"), member("gone/.wh.x"))
    assert [n for n in names(store, layer) if n != "gone"] == ["b", "d", "d/one", "d/three", "old"]
    committed = store.commit(layer)
    assert "a" not in store.look(store.new(committed))
    tree.same(before, store.look(below), "a whiteout reached the lower layer")


@core
@pytest.mark.parametrize("first", [True, False])
def test_A03_an_opaque_mark_hides_what_lower_layers_have_wherever_it_stands(store: Store, *, first: bool) -> None:
    mark, new = member("d/.wh..wh..opq"), member("d/new", b"7")
    layer = applied(store, image(store), *((mark, new) if first else (new, mark)))
    assert names(store, layer) == ["a", "b", "d", "d/new", "old"]
    assert store.read(store.commit(layer), "d/new") == b"7"


@core
@pytest.mark.parametrize("first", [True, False])
def test_A03_a_whiteout_beside_an_entry_of_the_same_name_is_for_lower_layers(store: Store, *, first: bool) -> None:
    mark, new = member(".wh.old"), member("old", b"new")
    layer = applied(store, image(store), *((mark, new) if first else (new, mark)))
    assert store.read(layer, "old") == b"new"
    both = [member(".wh.d"), member("d", kind=DIR, mode=0o700), member("d/new")]
    layer = applied(store, image(store), *(both if first else reversed(both)))
    assert names(store, layer) == ["a", "b", "d", "d/new", "old"]


# ---------------------------------------------------------------- attempts to break out


class Outside:
    """A directory of the host that nothing may reach, and ways to it."""

    def __init__(self, path: str) -> None:
        self.path = path
        os.makedirs(f"{path}/folder")
        steps.do(path, file("secret", b"secret", 0o600), file("folder/inner", b"inner"))
        self.wanted = self._state()

    def _state(self) -> object:
        links = [os.stat(f"{self.path}/{name}").st_nlink for name in ("secret", "folder/inner")]
        return tree.read(self.path), links

    def check(self) -> None:
        assert self._state() == self.wanted, "an archive has changed something outside of the layer"


@pytest.fixture
def outside(backing: Backing) -> Iterator[Outside]:
    made = Outside(backing.place())
    yield made
    made.check()


def attempt(store: Store, outside: Outside, members: Iterable[Member], parent: api.Layer | None = None) -> None:
    """Apply what is hostile: refused as such, or harmless."""
    layer = store.new(parent)
    before = hoststate.descriptors()
    said = ""
    try:
        archive.unpack(store, layer, pack(members))
    except ImageError as error:
        said = str(error)
    assert "\n" not in said
    outside.check()
    assert hoststate.descriptors() == before
    with store.mount(layer, read_only=True) as root:
        for folder, _, found in os.walk(root):
            for name in found:
                path = f"{folder}/{name}"
                if stat.S_ISREG(os.lstat(path).st_mode):
                    assert steps.read(folder, name) != b"secret", f"{path} is the host's file"
    store.driver.remove(layer)


UP = "../" * 30
WHITEOUTS: dict[str, Callable[[str], list[Member]]] = {
    "nothing": lambda out: [member(".wh.")],
    "itself": lambda out: [member(".wh..")],
    "parent": lambda out: [member(".wh...")],
    "up": lambda out: [member(f"{UP}{out[1:]}/.wh.secret")],
    "absolute": lambda out: [member(f"{out}/.wh.secret")],
    "down-and-up": lambda out: [member(f"d/../../{UP}{out[1:]}/.wh.folder")],
    "symlink": lambda out: [member("l", kind=SYMLINK, link=out), member("l/.wh.secret")],
    "symlink-opaque": lambda out: [member("l", kind=SYMLINK, link=out), member("l/.wh..wh..opq")],
    "symlink-chain": lambda out: [
        member("m", kind=SYMLINK, link=f"{UP}{out[1:]}"), member("l", kind=SYMLINK, link="m"), member("l/.wh.folder"),
    ],
    "no-file": lambda out: [member(".wh.a", kind=SYMLINK, link=f"{out}/secret")],
    "of-whiteout": lambda out: [member(".wh..wh.plnk"), member("d/.wh..wh.aufs")],
    "root-opaque": lambda out: [member(".wh..wh..opq")],
}  # fmt: skip
SYMLINKS: dict[str, Callable[[str], list[Member]]] = {
    "absolute": lambda out: [member("l", kind=SYMLINK, link=out), member("l/new", b"1")],
    "relative": lambda out: [member("l", kind=SYMLINK, link=f"{UP}{out[1:]}"), member("l/new", b"1")],
    "over-file": lambda out: [member("l", kind=SYMLINK, link=f"{out}/secret"), member("l", b"1")],
    "append-file": lambda out: [member("l", kind=SYMLINK, link=f"{out}/secret"), member("l", b"1", mode=0o777)],
    "chained": lambda out: [
        member("m", kind=SYMLINK, link=f"{UP}{out[1:]}"), member("l", kind=SYMLINK, link="m/folder"),
        member("l/inner", b"1"),
    ],
    "slash-ended": lambda out: [member("l", kind=SYMLINK, link=f"{out}/"), member("l/", kind=DIR, mode=0o777)],
    "over-directory": lambda out: [
        member("x", kind=DIR), member("x", kind=SYMLINK, link=out), member("x/folder", kind=DIR, mode=0o777),
    ],
    "late-directory": lambda out: [
        member("x", kind=DIR, mode=0o777, uid=5), member("x/f"), member("x", kind=SYMLINK, link=f"{out}/folder"),
    ],
    "parent-directory": lambda out: [member("l", kind=SYMLINK, link=".."), member("l/l/l/new", b"1")],
    "up": lambda out: [member(f"{UP}{out[1:]}/new", b"1")],
    "absolute-name": lambda out: [member(f"{out}/secret", b"1")],
    "empty-name": lambda out: [member("", b"1"), member("./", kind=DIR, mode=0o700)],
    "root-replaced": lambda out: [member(".", kind=SYMLINK, link=out), member("new", b"1")],
    "empty-target": lambda out: [member("l", kind=SYMLINK, link=""), member("l/new")],
    "device-through": lambda out: [member("l", kind=SYMLINK, link=f"{out}/new"), member("l", kind=FIFO)],
}  # fmt: skip
HARD_LINKS: dict[str, Callable[[str], list[Member]]] = {
    "absolute": lambda out: [member("h", kind=LINK, link=f"{out}/secret"), member("h", b"1")],
    "relative": lambda out: [member("h", kind=LINK, link=f"{UP}{out[1:]}/secret")],
    "down-and-up": lambda out: [member("d", kind=DIR), member("h", kind=LINK, link=f"d/../../{UP}{out[1:]}/secret")],
    "through-symlink": lambda out: [
        member("l", kind=SYMLINK, link=out), member("h", kind=LINK, link="l/secret"), member("h", b"1", mode=0o777),
    ],
    "to-symlink": lambda out: [
        member("l", kind=SYMLINK, link=f"{out}/secret"), member("h", kind=LINK, link="l"), member("h", b"1"),
    ],
    "to-symlink-then-below": lambda out: [
        member("l", kind=SYMLINK, link=out), member("h", kind=LINK, link="l"), member("h/new", b"1"),
    ],
    "chmod-after": lambda out: [
        member("l", kind=SYMLINK, link=f"{out}/folder"), member("h", kind=LINK, link="l"),
        member("h", kind=DIR, mode=0o777, uid=9),
    ],
    "to-itself": lambda out: [member("h", kind=LINK, link="h")],
    "to-root": lambda out: [member("h", kind=LINK, link="/")],
    "to-directory": lambda out: [member("d", kind=DIR), member("h", kind=LINK, link="d")],
    "to-nothing": lambda out: [member("h", kind=LINK, link="missing")],
}  # fmt: skip


@core
@pytest.mark.parametrize("how", WHITEOUTS)
def test_A04_whiteouts_reach_nothing_outside(store: Store, outside: Outside, how: str) -> None:
    attempt(store, outside, WHITEOUTS[how](outside.path), image(store))


@core
@pytest.mark.parametrize("how", SYMLINKS)
def test_A05_symbolic_links_lead_nowhere_outside(store: Store, outside: Outside, how: str) -> None:
    attempt(store, outside, SYMLINKS[how](outside.path))


@core
@pytest.mark.parametrize("how", SYMLINKS)
def test_A05_symbolic_links_of_lower_layers_lead_nowhere_outside(store: Store, outside: Outside, how: str) -> None:
    members = SYMLINKS[how](outside.path)
    links = [m for m in members if m[0].type == SYMLINK and m[0].linkname and m[0].name != "."]
    below = store.layer(*[symlink(info.linkname, info.name) for info, _ in links])
    attempt(store, outside, [m for m in members if m not in links], below)


@core
@pytest.mark.parametrize("how", HARD_LINKS)
def test_A06_hard_links_lead_nowhere_outside(store: Store, outside: Outside, how: str) -> None:
    attempt(store, outside, HARD_LINKS[how](outside.path))


@full
@budget(60)
def test_A07_a_directory_that_is_swapped_for_a_link_meanwhile(store: Store, outside: Outside) -> None:
    data = pack([member(f"x/f{n}", b"1", mode=0o777) for n in range(50)])
    layer = store.new(None, directory("x"), symlink(outside.path, "l"))
    with store.tree(layer) as fd:

        def swap() -> None:
            for n in itertools.count():
                try:
                    paths.rename2(fd, "x", fd, "l", paths.RENAME_EXCHANGE)
                except OSError as error:
                    if error.errno != errno.EINVAL:
                        raise
                    swap_by_renames(fd, f"x{n}")

        pid = crash.start(swap)
        try:
            for _ in range(60):
                with contextlib.suppress(ImageError):  # it met the link
                    apply(pieces(data), fd)
            assert os.waitpid(pid, os.WNOHANG) == (0, 0), "the process that swaps has ended"
        finally:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
    outside.check()


def swap_by_renames(fd: int, aside: str) -> None:
    """Put the link in the directory's place and back, where the file system does not exchange names: between them there
    is neither for a moment, in which another directory may be made."""
    rename = functools.partial(os.rename, src_dir_fd=fd, dst_dir_fd=fd)
    rename("x", aside)
    with contextlib.suppress(IsADirectoryError):
        rename("l", "x")
        rename("x", "l")
    try:
        rename(aside, "x")
    except OSError as error:
        if error.errno != errno.ENOTEMPTY:
            raise


# ---------------------------------------------------------------- sound archives, and others


@core
def test_A08_of_entries_with_one_name_the_last_wins(store: Store) -> None:
    layer = applied(
        store, image(store),
        member("f", b"first", mode=0o600), member("f", b"last", mode=0o640),
        member("x", b"file"), member("x", kind=DIR, mode=0o711), member("x/in", b"1"),
        member("y", kind=DIR), member("y/in", b"1"), member("y", b"file"),
        member("z", kind=SYMLINK, link="f"), member("z", b"no link"),
        member("d", b"a file where a lower layer has a directory"),
        member("a", kind=DIR, mode=0o700), member("a/in"),
    )  # fmt: skip
    found = store.look(layer)
    assert sorted(found) == [".", "a", "a/in", "b", "d", "f", "old", "x", "x/in", "y", "z"]
    assert [found[n].kind for n in "adfxyz"] == ["dir", "file", "file", "dir", "file", "file"]
    assert (found["f"].mode, found["x"].mode) == (0o640, 0o711)
    assert (store.read(layer, "f"), store.read(layer, "z")) == (b"last", b"no link")


SOUND = pack([member("a", b"1" * 5000), member("b", b"2" * 5000)])
JUNK: dict[str, Callable[[], bytes]] = {
    "cut-header": lambda: SOUND[:300],
    "cut-data": lambda: SOUND[:2000],
    "checksum": lambda: SOUND[:148] + b"0000000\0" + SOUND[156:],
    "random": lambda: os.urandom(20_000),
    "gzip-cut": lambda: gzip.compress(SOUND)[:-20],
    "gzip-damaged": lambda: gzip.compress(SOUND, 0)[:3000] + b"\xff" * 50 + gzip.compress(SOUND, 0)[3050:],
    "gzip-trailing": lambda: gzip.compress(SOUND) + b"rubbish",
    "bzip2": lambda: bz2.compress(SOUND),
    "xz": lambda: lzma.compress(SOUND),
    "zstd-cut": lambda: b"\x28\xb5\x2f\xfd\x04\x58\x11",
}


def given_up(store: Store, layer: api.Layer, parent: api.Layer | None) -> None:
    """What the engine does with a layer that did not come to be: nothing of it stays."""
    store.driver.remove(layer)
    store.purge_all()
    living = {(parent.id, parent.kind)} if parent is not None else set()
    assert store.living() == living
    assert store.leftovers() == []


@core
@pytest.mark.parametrize("kind", JUNK)
def test_A09_junk_is_refused_and_leaves_nothing(store: Store, kind: str) -> None:
    base = store.layer(file("a"))
    layer = store.new(base)
    before = hoststate.descriptors(), threading.active_count()
    with store.tree(layer) as fd, pytest.raises(ImageError) as raised:
        unpack(pieces(JUNK[kind]()), fd, diff_id=digest(SOUND))
    assert "\n" not in str(raised.value)
    assert (hoststate.descriptors(), threading.active_count()) == before
    given_up(store, layer, base)


@core
def test_A09_what_unpacks_to_more_than_is_allowed_is_refused(store: Store) -> None:
    data = pack([member("zeros", bytes(64 << 20))])
    layer = store.new()
    with store.tree(layer) as fd, pytest.raises(ImageError):
        unpack(pieces(gzip.compress(data, 1)), fd, diff_id=digest(data), limit=8 << 20)
    with store.mount(layer, read_only=True) as root:
        assert not os.path.lexists(f"{root}/zeros") or os.lstat(f"{root}/zeros").st_size <= 8 << 20
    given_up(store, layer, None)


@core
def test_A10_a_parent_that_is_not_named_keeps_what_it_has_below(store: Store) -> None:
    below = store.layer(
        directory("etc"), set_xattr("etc", "user.x", b"1"), chown("etc", 9, 8), chmod("etc", 0o2750),
        directory("etc/in", 0o700), chown("etc/in", 7, 7), times("etc/in", 10**18), times("etc", 10**18),
    )  # fmt: skip
    below = store.layer(file("x"), parent=below)
    wanted = store.look(below)
    layer = applied(store, below, member("etc/in/new", b"1"), member("made/for/it", b"2"))
    found = store.look(layer)
    tree.same(
        {n: wanted[n] for n in ("etc", "etc/in")}, {n: found[n] for n in ("etc", "etc/in")},
        "directories that the archive does not name", ignore=("mtime",),
    )  # fmt: skip
    if store.capabilities.parent_times_survive_copy_up:
        assert found["etc"].mtime == 10**18, "nothing was made in it"
    assert [(found[n].mode, found[n].uid, found[n].gid) for n in ("made", "made/for")] == [(0o755, 0, 0)] * 2


@core
def test_A10_a_parent_that_is_named_later_has_what_the_archive_says(store: Store) -> None:
    below = store.layer(file("x"), parent=store.layer(directory("etc", 0o700), set_xattr("etc", "user.x", b"1")))
    layer = applied(
        store, below, member("etc/new", b"1"), member("etc", kind=DIR, mode=0o1777, uid=3, gid=4, mtime=1234),
        member("fresh/new"), member("fresh/", kind=DIR, mode=0o711, uid=5, mtime=99),
    )  # fmt: skip
    etc, fresh = store.look(layer)["etc"], store.look(layer)["fresh"]
    left = () if store.capabilities.xattrs_removable else (("user.x", b""),)
    assert (etc.mode, etc.uid, etc.gid, etc.mtime, etc.xattrs) == (0o1777, 3, 4, 1234 * 10**9, left)
    assert (fresh.mode, fresh.uid, fresh.mtime) == (0o711, 5, 99 * 10**9)


@core
def test_A11_devices_are_refused_to_a_plain_user(target: Target, backing: Backing, store: Store) -> None:
    if not store.capabilities.rootless:
        marks.skip("capability", "rootless is denied")
    place = backing.place()
    os.mkdir(place)
    null, _ = member("null", kind=CHAR, mode=0o666)
    null.devmajor, null.devminor = 1, 3
    data = pack([member("a", b"1"), (null, b"")])

    def work(there: str) -> None:
        with Store(target, f"{there}/store") as mine:
            layer = mine.new(mine.layer(file("x")))
            with pytest.raises(ImageError, match="null"):
                archive.unpack(mine, layer, data)

    as_plain_user(place, work)
    layer = store.new(store.layer(file("x")))
    archive.unpack(store, layer, data)
    found = store.look(layer)["null"]
    assert (found.kind, found.content, found.mode) == ("char", "1:3", 0o666)


@core
def test_A12_times_of_directories_are_right_after_their_children_are_made(store: Store) -> None:
    nested = [member("/".join("abcdef"[: n + 1]), kind=DIR, mtime=1000 + n) for n in range(6)]
    layer = applied(
        store, image(store), *nested, *[member(f"a/b/f{n}", b"1", mtime=5) for n in range(5)],
        member("d", kind=DIR, mtime=77), member("d/.wh.one"), member("d/new"),
    )  # fmt: skip
    found = store.look(store.commit(layer))
    for n in range(6):
        assert found["/".join("abcdef"[: n + 1])].mtime == (1000 + n) * 10**9
    assert found["d"].mtime == 77 * 10**9


@full
@budget(60)
def test_A13_a_full_file_system_is_told_and_its_space_comes_back(target: Target, backing: Backing) -> None:
    with backing.own(64 << 20) as system:
        store = Store(target, f"{system.path}/store")
        base = store.layer(file("a", b"1"))
        sync(store.root)
        before = system.free()
        info = tarfile.TarInfo("big")
        info.size = before + (16 << 20)
        block = os.urandom(1 << 20)  # what is written must not be holes

        def chunks() -> Iterator[bytes]:
            yield info.tobuf(tarfile.PAX_FORMAT)
            for _ in range(info.size >> 20):
                yield block

        layer = store.new(base)
        with store.tree(layer) as fd, pytest.raises(NoSpace) as raised:
            apply(chunks(), fd)
        assert raised.value.remedy
        assert store.read(base, "a") == b"1", "a full file system stops reading"
        store.driver.remove(layer)
        store.purge_all()
        sync(store.root)
        if system.kind != "btrfs":  # gives space back some time later
            assert before - system.free() < 2 << 20, "the space of the failed layer has not come back"
        assert store.living() == {(base.id, base.kind)}
        store.driver.close()


@core
def test_A14_a_cancelled_application_leaves_nothing(store: Store) -> None:
    data = pack([member(f"f{n}", os.urandom(5000)) for n in range(100)])

    def chunks(most: int) -> Iterator[bytes]:
        for n, piece in enumerate(pieces(data)):
            if n == most:
                raise Cancelled("cancelled by the user")
            yield piece

    for most in (0, 1, 5):
        layer = store.new()
        before = hoststate.descriptors(), threading.active_count()
        with store.tree(layer) as fd, pytest.raises(Cancelled):
            unpack(chunks(most), fd, diff_id=digest(data))
        assert (hoststate.descriptors(), threading.active_count()) == before
        given_up(store, layer, None)


@core
@pytest.mark.parametrize("pack_it", [bytes, gzip.compress])
def test_A15_a_stream_with_another_digest_is_refused(store: Store, pack_it: Callable[[bytes], bytes]) -> None:
    layer = store.new()
    with store.tree(layer) as fd, pytest.raises(Tampered) as raised:
        unpack(pieces(pack_it(SOUND)), fd, diff_id=digest(SOUND + b"x"))
    assert raised.value.remedy
    given_up(store, layer, None)
    layer = store.new()
    with store.tree(layer) as fd:
        assert unpack(pieces(pack_it(SOUND)), fd, diff_id=digest(SOUND)) == len(SOUND)
    assert names(store, layer) == ["a", "b"]


@full
@budget(60)
def test_A16_layers_that_are_applied_in_parallel_are_as_if_one_after_the_other(store: Store) -> None:
    below = image(store)
    archives = []
    for k in range(4):
        files = [member(f"d/own{k}/f{n}", b"x" * n) for n in range(200)]
        archives.append(pack([member(".wh.a"), member(f"d/own{k}", kind=DIR, mtime=k), *files]))
    wanted = []
    for data in archives:
        layer = store.new(below)
        archive.unpack(store, layer, data)
        wanted.append(store.look(layer))
    layers = [store.new(below) for _ in archives]
    pids = [
        crash.start(lambda layer=layer, data=data: archive.unpack(store, layer, data))  # type: ignore[misc]
        for layer, data in zip(layers, archives, strict=True)
    ]
    for pid in pids:
        crash.finish(pid)
    for layer, tree_ in zip(layers, wanted, strict=True):
        # Directories that the archive does not name have the time at which something was made in them.
        tree.same(
            {p: n for p, n in tree_.items() if p not in (".", "d")},
            {p: n for p, n in store.look(layer).items() if p not in (".", "d")}, "applied beside others",
        )  # fmt: skip


@core
def test_A16_a_layer_applied_to_nothing_and_put_on_its_parent_later(store: Store) -> None:
    if not store.capabilities.rebase:
        marks.skip("capability", "rebase is denied")
    below = image(store)
    data = pack([member("new", kind=DIR, mtime=5), member("new/f", b"1"), member("b", b"changed")])
    usual = store.new(below)
    archive.unpack(store, usual, data)
    early = store.new()
    archive.unpack(store, early, data)
    new = api.Layer(early.id, early.number, api.Kind.COMMITTED, below)
    tree.same(store.look(store.commit(usual)), store.look(store.commit(early, new)), "put on later", ignore=("mtime",))
