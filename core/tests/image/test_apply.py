"""Layers' archives applied to a tree: what they mean, and what hostile ones must not do (A03-A09, past CVEs).

Every test has a canary beside the tree, which no archive may change, read into the tree or link to.
"""

import io
import os
import stat
import subprocess
import tarfile
import threading
from pathlib import Path

import pytest
from cowshed_testing.images import LayerTar

from cowshed.errors import CowshedError, ImageError, NoSpace
from cowshed.layers.apply import apply


@pytest.fixture
def root(tmp_path):
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "canary").write_text("alive")
    os.chmod(outside / "canary", 0o640)
    (tmp_path / "root").mkdir()
    before = snapshot(outside)
    yield tmp_path / "root"
    assert snapshot(outside) == before


def snapshot(folder):
    return {
        str(path): (os.lstat(path).st_mode, os.lstat(path).st_uid, os.lstat(path).st_nlink, os.lstat(path).st_mtime_ns,
                    path.read_bytes() if path.is_file() else b"")
        for path in [folder, *sorted(folder.rglob("*"))]
    }  # fmt: skip


def put(root, layer, **options):
    data = layer if isinstance(layer, bytes) else layer.bytes()
    fd = os.open(root, os.O_RDONLY | os.O_DIRECTORY)
    before = set(os.listdir("/proc/self/fd"))
    try:
        return apply([data[i : i + 1000] for i in range(0, len(data), 1000)], fd, **options)
    finally:
        assert set(os.listdir("/proc/self/fd")) == before, "a descriptor is left open"
        os.close(fd)


def refused(root, layer, match, **options):
    with pytest.raises(ImageError, match=match) as caught:
        put(root, layer, **options)
    assert "\n" not in str(caught.value)


def names(root):
    return sorted(str(path.relative_to(root)) for path in root.rglob("*"))


def canary(root):
    return root.parent / "outside" / "canary"


# ---------------------------------------------------------------- what an archive means


def test_every_attribute(root):
    layer = LayerTar()
    layer.dir("d", 0o2750, uid=7, gid=8, mtime=5)
    layer.file("d/f", "data", 0o4711, uid=9, gid=10, mtime=1.5)
    layer.file("d/x", "", pax_headers={"SCHILY.xattr.user.note": "höh", "mtime": "1234567890.123456789"})
    layer.symlink("d/s", "/etc/passwd").hardlink("d/h", "d/f")
    layer._add("d/c", tarfile.CHRTYPE, 0o666, devmajor=1, devminor=3)
    layer._add("d/b", tarfile.BLKTYPE, 0o660, devmajor=7, devminor=300)
    layer._add("d/p", tarfile.FIFOTYPE, 0o622)
    assert put(root, layer) == 8
    d, f = os.stat(root / "d"), os.stat(root / "d/f")
    assert (stat.S_IMODE(d.st_mode), d.st_uid, d.st_gid, d.st_mtime) == (0o2750, 7, 8, 5)
    assert (stat.S_IMODE(f.st_mode), f.st_uid, f.st_gid, f.st_mtime, f.st_nlink) == (0o4711, 9, 10, 1.5, 2)
    assert (root / "d/f").read_text() == "data"
    assert os.stat(root / "d/x").st_mtime_ns == 1234567890123456789
    assert os.getxattr(root / "d/x", "user.note") == "höh".encode()
    assert os.readlink(root / "d/s") == "/etc/passwd"
    assert os.stat(root / "d/c").st_rdev == os.makedev(1, 3)
    assert os.stat(root / "d/b").st_rdev == os.makedev(7, 300)
    assert stat.S_ISFIFO(os.stat(root / "d/p").st_mode)
    assert stat.S_IMODE(os.stat(root / "d/p").st_mode) == 0o622


def test_the_roots_own_attributes(root):
    put(root, LayerTar().dir("./", 0o711, uid=3, gid=4, mtime=77).file("./a", "x"))
    there = os.stat(root)
    assert (stat.S_IMODE(there.st_mode), there.st_uid, there.st_gid, there.st_mtime) == (0o711, 3, 4, 77)


def test_the_callers_umask_changes_nothing(root):
    old = os.umask(0o077)
    try:
        put(root, LayerTar().file("a/b", "x", 0o666))
        assert os.umask(0o077) == 0o077
    finally:
        os.umask(old)
    assert stat.S_IMODE(os.stat(root / "a/b").st_mode) == 0o666
    assert stat.S_IMODE(os.stat(root / "a").st_mode) == 0o755


def test_a_directory_over_a_directory_keeps_its_contents(root):
    put(root, LayerTar().dir("d", 0o700).file("d/old", "1"))
    put(root, LayerTar().dir("d", 0o750).file("d/new", "2"))
    assert names(root) == ["d", "d/new", "d/old"]
    assert stat.S_IMODE(os.stat(root / "d").st_mode) == 0o750


def test_a_name_that_comes_twice_is_told(root, capfd):
    put(root, LayerTar().dir("d").file("d/f", "one").dir("d").file("d/f", "two"))
    assert (root / "d/f").read_text() == "two"
    assert capfd.readouterr().err == "cowshed: warn: a layer has 1 names more than once: the last of each counts\n"
    put(root, LayerTar().dir("d").file("d/f", "three"))
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("first", ["file", "dir", "symlink", "fifo"])
@pytest.mark.parametrize("second", ["file", "dir", "symlink", "fifo"])
@pytest.mark.parametrize("together", [True, False], ids=["in one layer", "in two"])
def test_what_comes_later_wins(root, first, second, together):
    """A08: any kind over any kind."""

    def add(layer, kind):
        if kind == "dir":
            layer.dir("x").file("x/in", kind)
        elif kind == "file":
            layer.file("x", kind)
        elif kind == "symlink":
            layer.symlink("x", "elsewhere")
        else:
            layer._add("x", tarfile.FIFOTYPE, 0o600)
        return layer

    if together:
        put(root, add(add(LayerTar(), first), second))
    else:
        put(root, add(LayerTar(), first))
        put(root, add(LayerTar(), second))
    kind = os.lstat(root / "x").st_mode
    assert {"dir": stat.S_ISDIR, "file": stat.S_ISREG, "symlink": stat.S_ISLNK, "fifo": stat.S_ISFIFO}[second](kind)
    assert names(root) == (["x", "x/in"] if second == "dir" else ["x"])


def test_a_link_that_became_a_directory_leads_nowhere_else(root):
    """Descriptors of directories are kept: one that was reached through a link must not be used after the link went."""
    layer = LayerTar().dir("d").symlink("l", "d").file("l/one", "1")
    layer.dir("l").file("l/two", "2")
    put(root, layer)
    assert names(root) == ["d", "d/one", "l", "l/two"]
    layer = LayerTar().dir("e").dir("g").symlink("k", "e").file("k/one", "1").symlink("k", "g").file("k/two", "2")
    put(root, layer)
    assert (root / "e/one").exists()
    assert (root / "g/two").exists()


def test_files_below_a_link_of_a_lower_layer(root):
    """/bin -> usr/bin, and a layer that still says bin/tool."""
    put(root, LayerTar().dir("usr").dir("usr/bin").symlink("bin", "usr/bin").symlink("abs", "/usr"))
    put(root, LayerTar().file("bin/tool", "1").file("abs/bin/other", "2"))
    assert names(root) == ["abs", "bin", "usr", "usr/bin", "usr/bin/other", "usr/bin/tool"]


def test_long_names_and_every_format(root):
    deep = "/".join(["d" * 90] * 5) + "/" + "f" * 120
    for number, form in enumerate((tarfile.PAX_FORMAT, tarfile.GNU_FORMAT)):
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w", format=form) as tar:
            member = tarfile.TarInfo(f"{number}/{deep}")
            member.size = 3
            tar.addfile(member, io.BytesIO(b"abc"))
            link = tarfile.TarInfo(f"{number}/link")
            link.type, link.linkname = tarfile.SYMTYPE, "t" * 150
            tar.addfile(link)
        put(root, buffer.getvalue())
        assert (root / f"{number}/{deep}").read_text() == "abc"
        assert os.readlink(root / f"{number}/link") == "t" * 150


def test_a_name_that_the_layers_file_system_cannot_have(root):
    most = os.statvfs(root).f_namemax  # aufs: 242
    refused(root, LayerTar().file("d/" + "n" * (most + 1), b"x"), f"a name of {most + 1} bytes.*takes {most}")


def test_a_sparse_file(root, tmp_path):
    source = tmp_path / "source"
    source.mkdir()
    with open(source / "s", "wb") as file:
        file.write(b"begin")
        file.seek(3 << 20)
        file.write(b"middle")
        file.truncate(8 << 20)
    subprocess.run(["tar", "-C", source, "-S", "--format=gnu", "-cf", tmp_path / "a.tar", "s"], check=True)
    put(root, (tmp_path / "a.tar").read_bytes())
    assert (root / "s").read_bytes() == (source / "s").read_bytes()
    assert os.stat(root / "s").st_blocks * 512 < 1 << 20


def test_a_real_tree_as_gnu_tar_unpacks_it(root, tmp_path):
    archive, source, theirs = tmp_path / "etc.tar", tmp_path / "etc", tmp_path / "theirs"
    subprocess.run(["cp", "-a", "/etc", source], check=True)
    os.link(source / "passwd", source / "second name")
    os.setxattr(source / "passwd", "user.note", b"\0\xff")
    os.utime(source / "passwd", ns=(1_234_567_890_123_456_789,) * 2)
    subprocess.run(["tar", "--xattrs", "--format=pax", "-C", source, "-cf", archive, "."], check=True)
    put(root, archive.read_bytes())
    theirs.mkdir()
    command = ["tar", "--xattrs", "--xattrs-include=*", "--numeric-owner", "-xpf", archive, "-C", theirs]
    subprocess.run(command, check=True)
    assert snapshot(root) == {n.replace(str(theirs), str(root), 1): value for n, value in snapshot(theirs).items()}
    assert os.getxattr(root / "passwd", "user.note") == b"\0\xff"
    assert os.path.samefile(root / "passwd", root / "second name")


def test_names_that_are_no_text(root):
    layer = LayerTar().file(os.fsdecode(b"caf\xe9"), "latin").file("tab\there\nline", "odd")
    put(root, layer)
    assert sorted(os.listdir(os.fsencode(root))) == [b"caf\xe9", b"tab\there\nline"]


# ---------------------------------------------------------------- whiteouts (A03, A04)


def lower(root):
    put(root, LayerTar().dir("d").file("d/a", "a").dir("d/sub").file("d/sub/b", "b").file("top", "t"))


def test_plain_whiteouts(root):
    lower(root)
    put(root, LayerTar().dir("d").whiteout("d/a").whiteout("d/sub").whiteout("d/missing").whiteout("no/where"))
    assert names(root) == ["d", "top"]


def test_a_whiteout_of_a_link_takes_the_link(root):
    lower(root)
    put(root, LayerTar().symlink("l", "d"))
    put(root, LayerTar().whiteout("l"))
    assert names(root) == ["d", "d/a", "d/sub", "d/sub/b", "top"]


@pytest.mark.parametrize("last", [True, False], ids=["whiteout last", "whiteout first"])
def test_a_whiteout_is_for_lower_layers_only(root, last):
    lower(root)
    layer = LayerTar()
    if not last:
        layer.whiteout("top").whiteout("d")
    layer.file("top", "new").dir("d", 0o700).file("d/sub/new", "new")
    if last:
        layer.whiteout("top").whiteout("d")
    put(root, layer)
    assert names(root) == ["d", "d/sub", "d/sub/new", "top"]
    assert (root / "top").read_text() == "new"
    assert stat.S_IMODE(os.stat(root / "d").st_mode) == 0o700


@pytest.mark.parametrize("last", [True, False], ids=["opaque last", "opaque first"])
def test_an_opaque_directory_hides_what_is_below_at_any_depth(root, last):
    lower(root)
    layer = LayerTar().dir("d")
    if not last:
        layer.opaque("d")
    layer.file("d/new", "n").dir("d/sub").file("d/sub/new", "n")
    if last:
        layer.opaque("d")
    put(root, layer)
    assert names(root) == ["d", "d/new", "d/sub", "d/sub/new", "top"]


def test_an_opaque_root_and_an_opaque_directory_that_was_not_there(root):
    lower(root)
    put(root, LayerTar().file("mine", "m").file(".wh..wh..opq").opaque("fresh"))
    assert names(root) == ["fresh", "mine"]


@pytest.mark.parametrize(
    "name", [".wh.", ".wh..", ".wh...", "d/.wh.", "d/.wh..", "d/.wh...", ".wh..wh.x", "d/.wh..wh."]
)
def test_whiteouts_of_what_cannot_be_are_refused(root, name):
    """A04: a bare prefix, `.`, `..`: two peers delete the parent directory for some of them."""
    lower(root)
    before = names(root)
    refused(root, LayerTar().file(name), "whiteout")
    assert names(root) == before


def test_a_whiteout_that_is_no_plain_file(root):
    lower(root)
    refused(root, LayerTar().dir("d/.wh.a"), "no plain file")
    refused(root, LayerTar().symlink("d/.wh.a", "x"), "no plain file")


def test_whiteouts_through_links_stay_inside(root):
    outside = str(root.parent / "outside")
    put(root, LayerTar().symlink("l", outside).symlink("up", "../outside").symlink("abs", "/.."))
    put(root, LayerTar().whiteout("l/canary").whiteout("up/canary").whiteout("abs/outside").whiteout("../outside"))
    put(root, LayerTar().opaque("l"))
    assert canary(root).exists()


# ---------------------------------------------------------------- break-outs (A05, A06, A07)


@pytest.mark.parametrize(
    "target", ["/", "..", "../..", "../outside", "{outside}", "/../../..", "d/../../outside", "l/../../outside"]
)
@pytest.mark.parametrize("what", ["file", "dir", "symlink", "fifo", "whiteout", "opaque"])
def test_nothing_goes_out_through_a_link(root, target, what):
    """A05; CVE-2021-21272, CVE-2025-47290, CVE-2026-17106: each a name below a link that leads out."""
    layer = LayerTar().dir("d").symlink("l", target.format(outside=root.parent / "outside"))
    below = "l/canary"
    if what == "file":
        layer.file(below, "overwritten", 0o777, uid=1)
    elif what == "dir":
        layer.dir(below, 0o777, uid=1)
    elif what == "symlink":
        layer.symlink(below, "x")
    elif what == "fifo":
        layer._add(below, tarfile.FIFOTYPE, 0o777)
    elif what == "whiteout":
        layer.whiteout(below)
    else:
        layer.opaque("l")
    try:
        put(root, layer)
    except ImageError:
        pass
    assert canary(root).read_text() == "alive"
    assert sorted(os.listdir(root.parent)) == ["docker", "outside", "root"]  # the first is of conftest.py


@pytest.mark.parametrize(
    "name", ["../canary", "/../outside/canary", "d/../../outside/canary", "./../outside/canary", "//outside/canary"]
)
def test_names_that_lead_out_are_taken_from_the_root(root, name):
    """CVE-2007-4559, CVE-2014-9356: `..` stops at the root."""
    put(root, LayerTar().file(name, "inside"))
    assert canary(root).read_text() == "alive"
    assert any((root / p).is_file() and (root / p).read_text() == "inside" for p in names(root))


def test_chained_and_circular_links(root):
    outside = root.parent / "outside"
    layer = (
        LayerTar().symlink("a", "b").symlink("b", "c").symlink("c", str(outside)).symlink("x", "y").symlink("y", "x")
    )
    put(root, layer)
    put(root, LayerTar().file("a/canary", "inside"))
    assert Path(f"{root}{outside}/canary").read_text() == "inside"
    refused(root, LayerTar().file("x/f", "x"), "cannot be unpacked")


def test_a_link_whose_target_is_not_there_leads_into_the_root(root):
    """Where one peer makes the file and another refuses it: it is made, beneath the root and nowhere else."""
    links = LayerTar().symlink("absolute", "/made/here").symlink("relative", "../../up").symlink("file", "f/below")
    put(root, links.file("f", "x"))
    put(root, LayerTar().file("absolute/one", "1").dir("relative/two"))
    assert {"made/here/one", "up/two"} <= set(names(root))
    refused(root, LayerTar().file("file/three", "x"), "no directory")


def test_a_directory_entry_does_not_reach_through_a_link(root):
    """CVE-2021-32760: the link is replaced, and modes and owners of what it led to stay."""
    put(root, LayerTar().symlink("l", str(root.parent / "outside")).symlink("f", str(canary(root))))
    put(root, LayerTar().dir("l", 0o777, uid=55, gid=55).file("f", "mine", 0o777, uid=55))
    assert (root / "l").is_dir()
    assert not (root / "l").is_symlink()
    assert (root / "f").read_text() == "mine"


@pytest.mark.parametrize(
    "target", ["/outside/canary", "../outside/canary", "{canary}", "l/canary", "up/outside/canary"]
)
def test_hard_links_to_what_is_outside(root, target):
    """A06; CVE-2014-6407, CVE-2026-50163: then written through, and its mode changed."""
    layer = LayerTar().symlink("l", str(root.parent / "outside")).symlink("up", "..")
    layer.hardlink("h", target.format(canary=canary(root))).file("h", "overwritten", 0o777)
    refused(root, layer, "cannot be unpacked|leads nowhere")
    assert os.stat(canary(root)).st_nlink == 1


def test_a_hard_link_to_a_link_is_a_second_link_and_writing_replaces_it(root):
    layer = LayerTar().symlink("s", str(canary(root))).hardlink("h", "s").file("h", "mine", 0o777, uid=3)
    put(root, layer)
    assert (root / "h").read_text() == "mine"
    assert (root / "s").is_symlink()


def test_hard_links_to_directories_itself_nothing_and_the_root(root):
    refused(root, LayerTar().dir("d").hardlink("h", "d"), "cannot be unpacked")
    refused(root, LayerTar().file("f").hardlink("f", "f"), "to itself")
    refused(root, LayerTar().hardlink("h", "nowhere"), "cannot be unpacked")
    refused(root, LayerTar().hardlink("h", "/"), "to the root")


def test_the_root_is_not_replaced(root):
    """CVE-2014-9357 class: an entry that is the root and no directory."""
    for kind in (tarfile.SYMTYPE, tarfile.REGTYPE, tarfile.FIFOTYPE):
        refused(root, LayerTar()._add("./", kind, 0o777, linkname="/etc"), "replaces its own root|hard link|to nothing")
    refused(root, LayerTar()._add("..", tarfile.SYMTYPE, 0o777, linkname="/etc"), "replaces its own root")
    refused(root, LayerTar()._add("a", tarfile.SYMTYPE, 0o777, linkname=""), "to nothing")


def test_files_below_a_file(root):
    refused(root, LayerTar().file("f", "x").file("f/g", "y"), "no directory")


def test_a_link_swapped_while_it_is_used(root):
    """A07, CVE-2018-15664: another process puts a link in the place of a directory, again and again."""
    outside = str(root.parent / "outside")
    (root / "d").mkdir()
    stop = threading.Event()

    def swap():
        while not stop.is_set():
            try:
                os.rename(root / "d", root / "aside")
                os.symlink(outside, root / "d")
                os.unlink(root / "d")
                os.rename(root / "aside", root / "d")
            except OSError:
                continue

    thread = threading.Thread(target=swap)
    thread.start()
    try:
        for n in range(60):
            layer = LayerTar()
            for i in range(20):
                layer.file(f"d/{n}/{i}/canary", "x").file("d/canary", "gone", 0o777, uid=1).whiteout("d/other")
            try:
                put(root, layer)
            except ImageError:
                continue
    finally:
        stop.set()
        thread.join()
    assert canary(root).read_text() == "alive"
    assert os.listdir(outside) == ["canary"]


@pytest.mark.parametrize(
    "name", ["trusted.overlay.opaque", "trusted.overlay.redirect", "user.overlay.metacopy", "security.selinux"]
)
def test_attributes_that_are_not_an_images_to_set(root, name):
    """Kept by two peers: a layer could redirect overlay to any directory of another one."""
    pax = {f"SCHILY.xattr.{name}": "y", "SCHILY.xattr.trusted.fine": "1"}
    put(
        root,
        LayerTar()
        .dir("d", pax_headers=pax)
        .file("f", "", pax_headers=pax)
        ._add("p", tarfile.FIFOTYPE, 0o600, pax_headers=pax),
    )
    for path in ("d", "f", "p"):
        assert os.listxattr(root / path) == ["trusted.fine"]


# ---------------------------------------------------------------- archives that are none (A09)


def header(name=b"f", size=b"00000000003\0", kind=b"0", **fields):
    block = bytearray(512)
    block[: len(name)] = name
    block[100:108], block[108:116], block[116:124] = b"0000644\0", b"0000000\0", b"0000000\0"
    block[124:136], block[136:148] = size, b"00000000000\0"
    block[156:157] = kind
    block[257:265] = b"ustar\x0000"
    for at, value in fields.items():
        start = int(at[1:])
        block[start : start + len(value)] = value
    block[148:156] = b"%06o\0 " % (sum(block) - sum(block[148:156]) + 256)
    return bytes(block)


END = bytes(1024)


@pytest.mark.parametrize(
    ("archive", "match"),
    [
        (header()[:300], "cut short"),
        (header(), "cut short"),
        (header() + b"ab", "cut short"),
        (header()[:148] + b"000000\0 " + header()[156:] + b"abc" + bytes(509) + END, "wrong checksum"),
        (header(size=b"\xff" + bytes(11)) + END, "negative size"),
        (header(size=b"\xff" * 12) + END, "negative size"),
        (header(size=b"zzzzzzzzzzz\0") + END, "number that is none"),
        (header(kind=b"Z") + b"abc" + bytes(509) + END, "unknown type"),
        (header(kind=b"x", size=b"00100000000\0") + END, "extended header of 16777216 bytes"),
        (header(kind=b"L", size=b"77777777777\0") + END, "extended header of"),
        (header(kind=b"x") + b"abc" + bytes(509) + END, "not sound"),
        (header(kind=b"x", size=b"00000000021\0") + b"999999 size=12345" + bytes(495) + END, "not sound"),
        (header(kind=b"x", size=b"00000000015\0") + b"13 uid=hello\n" + bytes(499) + header() + END, "not sound"),
        (header(kind=b"x", size=b"00000000014\0") + b"12 path=a\0b\n" + bytes(500) + header() + END, "NUL"),
        (header(a108=b"\x80\0\0\0\xff\xff\xff\xff") + b"abc" + bytes(509) + END, "owner 4294967295"),
        (header(a136=b"\x80" + b"\x7f" * 11) + b"abc" + bytes(509) + END, "time"),
        (header(kind=b"3", size=b"00000000000\0", a329=b"7777777\0") + END, "device"),
        (header(kind=b"S", a386=b"00000000010\x0000000000005\0", a483=b"00000000002\0") + END, "map that is not sound"),
        (LayerTar().file("n" * 300, "x").bytes(), "a name of 300 bytes"),
    ],
)  # fmt: skip
def test_archives_that_are_not_sound(root, archive, match):
    """Each once stopped or broke an engine: CVE-2025-8194 (negative sizes), CVE-2025-58183 (sparse maps)."""
    refused(root, archive, match)


def test_an_archive_without_an_end_and_an_empty_one(root):
    put(root, header() + b"abc" + bytes(509))
    put(root, b"")
    put(root, END)
    assert names(root) == ["f"]


def test_more_than_is_allowed(root):
    refused(root, LayerTar().file("a", b"x" * 600).file("b", b"x" * 600), "more than is allowed", limit=1000)
    refused(root, header(size=b"\x80" + bytes(3) + b"\xff" * 8), "more than is allowed")
    assert not (root / "b").exists()


def test_a_sparse_file_that_claims_to_be_endless(root):
    """CVE-2025-58183 class: it costs nothing in the archive and would be a terabyte to whoever reads it."""
    huge = header(kind=b"S", size=b"00000000000\0", a483=b"\x80" + bytes(3) + b"\x7f" + bytes(7))
    refused(root, huge + END, "more than is allowed")


def test_a_full_disk(tmp_path):
    target = tmp_path / "small"
    target.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m,nr_inodes=50", "tmpfs", target], check=True)
    try:
        with pytest.raises(NoSpace, match="no space to unpack 'big'"):
            put(target, LayerTar().file("big", b"x" * (2 << 20)))
        layer = LayerTar()
        for n in range(100):
            layer.file(f"f{n}")
        (target / "big").unlink()
        with pytest.raises(NoSpace, match="no space to unpack 'f"):
            put(target, layer)
    finally:
        subprocess.run(["umount", target], check=True)


def test_random_damage_never_does_more_than_an_error(root):
    """Bytes of a good archive changed at random: an error of ours, or another tree, and never anything outside."""
    import random

    layer = LayerTar().dir("d", 0o755).file("d/f", "data").symlink("s", "../outside").hardlink("h", "d/f").whiteout("w")
    data = layer.file("long/" + "n" * 150, "x", pax_headers={"SCHILY.xattr.user.a": "b"}).bytes()
    source = random.Random(5)
    for n in range(300):
        damaged = bytearray(data)
        for _ in range(source.choice((1, 2, 8))):
            at = source.randrange(len(damaged))
            damaged[at] = source.randrange(256)
            block = at // 512 * 512
            if n % 2 and damaged[block + 257 : block + 262] == b"ustar":  # the checksum fits, so that more is looked at
                head = damaged[block : block + 512]
                damaged[block + 148 : block + 156] = b"%06o\0 " % (sum(head) - sum(head[148:156]) + 256)
        target = Path(root, str(n))
        target.mkdir()
        try:
            put(target, bytes(damaged), limit=1 << 20)
        except CowshedError:
            continue
