"""The initial file system of a guest: busybox, the modules that reach the disks, and the two scripts that start it."""

from __future__ import annotations

import lzma
import re
import stat
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from cowshed_vm.errors import VmError

MODULES = ("virtio_pci", "virtio_blk", "ext4", "overlay")  # a kernel that has one built in brings no file of it
FOLDERS = ("bin", "dev", "proc", "sys", "lower", "over", "new", "modules")
SCRIPTS = Path(__file__).parent / "guest"


def write(target: Path, modules: Path, busybox: Path) -> None:
    """A cpio archive ("newc") with the modules of the kernel whose module tree is given."""
    wanted = with_dependencies(MODULES, modules)
    with open(target, "wb") as file:
        for name in FOLDERS:
            _add(file, name, stat.S_IFDIR | 0o755)
        _add(file, "dev/console", stat.S_IFCHR | 0o600, device=(5, 1))
        _add(file, "dev/null", stat.S_IFCHR | 0o666, device=(1, 3))
        _add(file, "bin/busybox", stat.S_IFREG | 0o755, busybox.read_bytes())
        _add(file, "bin/sh", stat.S_IFLNK | 0o777, b"busybox")
        for name in ("init", "stage2"):
            _add(file, name, stat.S_IFREG | 0o755, (SCRIPTS / name).read_bytes())
        for name, data in wanted.items():
            _add(file, f"modules/{name}.ko", stat.S_IFREG | 0o644, data)
        _add(file, "order", stat.S_IFREG | 0o644, "".join(f"{name}\n" for name in wanted).encode())
        _add(file, "TRAILER!!!", 0)


def with_dependencies(names: tuple[str, ...], modules: Path) -> dict[str, bytes]:
    """The modules' contents, uncompressed, in the order in which they can be loaded."""
    files = {re.sub(r"\.ko(\.\w+)?$", "", path.name).replace("-", "_"): path for path in modules.rglob("*.ko*")}
    loaded: dict[str, bytes] = {}

    def visit(name: str, above: tuple[str, ...]) -> None:
        name = name.replace("-", "_")
        if name in loaded or name in above or name not in files:
            return
        data = content(files[name])
        for field, value in modinfo(data):
            if field == "depends" and value:
                before = value.split(",")
            elif field == "softdep" and value.startswith("pre:"):
                before = value.removeprefix("pre:").partition("post:")[0].split()
            else:
                continue
            for other in before:
                visit(other, (*above, name))
        loaded[name] = data

    for name in names:
        visit(name, ())
    return loaded


def content(path: Path) -> bytes:
    if path.suffix == ".ko":
        return path.read_bytes()
    if path.suffix == ".xz":
        return lzma.decompress(path.read_bytes())
    raise VmError(f"{path.name} is compressed in a way that Python cannot undo: name a kernel with .ko or .ko.xz")


def modinfo(data: bytes) -> Iterator[tuple[str, str]]:
    """The fields of a module's .modinfo section (elf(5), 64 bits, little endian)."""
    table = struct.unpack_from("<Q", data, 0x28)[0]
    size, count, names = struct.unpack_from("<HHH", data, 0x3A)
    sections = [struct.unpack_from("<IIQQQQIIQQ", data, table + size * number) for number in range(count)]
    for section in sections:
        start = sections[names][4] + section[0]
        if data[start : data.index(b"\0", start)] == b".modinfo":
            for text in data[section[4] : section[4] + section[5]].decode("latin-1").split("\0"):
                field, equals, value = text.partition("=")
                if equals:
                    yield field, value


def _add(file: BinaryIO, name: str, mode: int, data: bytes = b"", device: tuple[int, int] = (0, 0)) -> None:
    label = name.encode() + b"\0"
    fields = (0, mode, 0, 0, 1, 0, len(data), 0, 0, *device, len(label), 0)
    head = b"070701" + b"".join(b"%08X" % field for field in fields) + label
    file.write(head + bytes(-len(head) % 4) + data + bytes(-len(data) % 4))
