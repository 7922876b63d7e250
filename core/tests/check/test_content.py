"""The second reading of archives (`cowshed.check.content`): what `apply` makes of them is what is expected, and what
differs is told."""

import hashlib
import io
import os
import subprocess
import tarfile

import pytest

from cowshed.check.content import Expected, compare
from cowshed.layers.apply import apply
from cowshed.storage.api import Capabilities, Granularity

CAN = Capabilities(granularity=Granularity.TREE)


def archive(*members):
    """members: (name, kind, what): bytes of a file, target of a link, None."""
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for name, kind, what in members:
            info = tarfile.TarInfo(name)
            info.type, info.mode, info.mtime = kind, 0o755 if kind == tarfile.DIRTYPE else 0o640, 1_700_000_000
            content = what if isinstance(what, bytes) else b""
            info.size = len(content)
            if isinstance(what, str):
                info.linkname = what
            tar.addfile(info, io.BytesIO(content))
    return data.getvalue()


F, D, L, H = tarfile.REGTYPE, tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE
BASE = archive(
    ("usr", D, None), ("usr/lib", D, None), ("usr/lib/a", F, b"a"), ("lib", L, "usr/lib"), ("d", D, None),
    ("d/x", F, b"x"), ("d/y", F, b"y"), ("d/deep/er", F, b"implied"), ("big", F, bytes(1 << 21) + b"end"),
    ("fifo", tarfile.FIFOTYPE, None),
)  # fmt: skip
CHAINS = {
    "one": [BASE],
    "through a link": [BASE, archive(("lib/b", F, b"b"), ("hard", H, "lib/a"))],
    "whiteouts": [BASE, archive(("d/.wh.x", F, b""), ("usr/lib/.wh.a", F, b""), ("nowhere/.wh.x", F, b""))],
    "a directory is deleted": [BASE, archive((".wh.d", F, b""))],
    "opaque": [BASE, archive(("d", D, None), ("d/new", F, b"n"), ("d/.wh..wh..opq", F, b""))],
    "opaque first": [BASE, archive(("d/.wh..wh..opq", F, b""), ("d/deep/new", F, b"n"))],
    "other kinds": [BASE, archive(("d", F, b"now a file"), ("lib", D, None), ("lib/c", F, b"c"), ("fifo", L, "/big"))],
    "deleted and made again": [BASE, archive(("d/.wh.x", F, b""), ("d/x", F, b"again"))],
    "made and deleted": [BASE, archive(("d/x", F, b"again"), ("d/.wh.x", F, b""))],
    "twice": [archive(("a", F, b"1"), ("a", F, b"22"), ("b", H, "a"), ("a", F, b"333"))],
    "up and down": [BASE, archive(("up", L, "usr/lib/../../d"), ("up/z", F, b"z"))],
}


@pytest.fixture(params=CHAINS)
def made(request, tmp_path):
    """What the engine makes of a chain of archives, and what they are expected to be."""
    expected = Expected()
    fd = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)
    for data in CHAINS[request.param]:
        apply([data], fd)
        expected.read([data])
    yield expected, fd, tmp_path
    os.close(fd)


def told(made):
    expected, fd, _ = made
    return compare(expected, fd, CAN, whole=True, told=lambda: None)


def test_what_apply_makes_is_what_is_expected(made):
    assert told(made) == []


@pytest.fixture
def base(tmp_path):
    expected = Expected()
    fd = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)
    apply([BASE], fd)
    expected.read([BASE])
    yield expected, fd, tmp_path
    os.close(fd)


def swap(path, **times):
    status = os.stat(path)
    with open(path, "r+b") as file:
        file.write(b"Z")
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


CHANGES = {
    "/d/x has other bytes": lambda top: swap(top / "d/x"),
    "/d/x has 3 bytes, not 1": lambda top: (top / "d/x").write_bytes(b"xxx"),
    "/d/x has mode 4640, not 640": lambda top: os.chmod(top / "d/x", 0o4640),
    "/d/x belongs to 5:6, not 0:0": lambda top: os.chown(top / "d/x", 5, 6),
    "/d/x has another time": lambda top: os.utime(top / "d/x", (1, 1)),
    "/lib leads elsewhere": lambda top: (os.unlink(top / "lib"), os.symlink("usr/other", top / "lib")),
    "/fifo is of another kind": lambda top: (os.unlink(top / "fifo"), (top / "fifo").write_bytes(b"")),
    "/usr has mode 700, not 755": lambda top: os.chmod(top / "usr", 0o700),
    "/big has other bytes": lambda top: swap(top / "big"),
}


@pytest.mark.parametrize("text", CHANGES)
def test_what_differs_is_told(base, text):
    CHANGES[text](base[2])
    assert text in told(base)


def test_what_is_missing_or_too_much_is_told_but_not_all_of_it(base):
    os.unlink(base[2] / "big")
    for n in range(10):
        (base[2] / f"stranger{n}").touch()
    found = told(base)
    assert len(found) == 6
    assert found[-1] == "and 6 more"
    assert all(text.endswith("is in no archive") for text in found[:5])


def test_files_of_lower_layers_are_read_only_where_they_are_copies(base):
    expected, fd, top = base
    expected.read([archive(("new", F, b"n"))])
    apply([archive(("new", F, b"n"))], fd)
    swap(top / "d/x")
    assert compare(expected, fd, CAN, whole=False, told=lambda: None) == []
    assert told(base) == ["/d/x has other bytes"]


def test_holes_count_as_zeros(tmp_path):
    with open(tmp_path / "sparse", "wb") as file:
        file.write(b"abc" * 1000)
        file.seek(1 << 20)
        file.write(b"def" * 1000)
        file.truncate(3 << 20)
    words = ["tar", "--sparse", "--format=gnu", "-C", tmp_path, "-cf", "-", "sparse"]
    data = subprocess.run(words, check=True, capture_output=True).stdout
    assert len(data) < 1 << 20, "tar has written the holes"
    expected = Expected()
    expected.read([data])
    assert expected.nodes[b"sparse"].digest == hashlib.sha256((tmp_path / "sparse").read_bytes()).digest()


def test_a_device_that_means_deleted_is_not_missed_where_it_cannot_be_seen(tmp_path):
    data = archive(("zero", tarfile.CHRTYPE, None), ("a", F, b"a"))
    expected = Expected()
    expected.read([data])
    apply([data], fd := os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY))
    try:
        assert compare(expected, fd, CAN, whole=True, told=lambda: None) == []
        os.unlink(tmp_path / "zero")
        assert compare(expected, fd, CAN, whole=True, told=lambda: None) == ["/zero is missing"]
        overlay = Capabilities(granularity=Granularity.FILE, char_0_0_visible=False)
        assert compare(expected, fd, overlay, whole=True, told=lambda: None) == []
    finally:
        os.close(fd)
