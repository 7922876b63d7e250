"""The kernels that guests boot: one of Debian's, a package in a file, or a directory with an image and modules."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import struct
from pathlib import Path
from typing import NamedTuple

from cowshed_vm import ext4, initrd, programs, zfs
from cowshed_vm.archive import Archive
from cowshed_vm.cache import Cache, key, recipe
from cowshed_vm.errors import VmError
from cowshed_vm.programs import run

RECIPE = ("kernel.py", "initrd.py", "ext4.py", "guest/init", "guest/stage2")
IMAGES = ("boot/vmlinuz-*", "vmlinuz*", "bzImage", "arch/x86/boot/bzImage")
MODULES = ("lib/modules", "usr/lib/modules", "modules")


class Kernel(NamedTuple):
    release: str
    image: Path
    initrd: Path
    modules: Path  # a disk


def get(cache: Cache, archive: Archive, wanted: str) -> Kernel:
    """The kernel of a series ("6.1": with ZFS) or at a path, made ready if it is not."""
    if is_series(wanted):
        package = archive.kernel(wanted)
        release, version = package.removeprefix("linux-image-"), archive.version(package)
        extra = zfs.modules(cache, archive, release, version) if wanted == zfs.SERIES else None
        name = key(package, version, extra.name if extra else "", recipe(*RECIPE))
    else:
        package, extra = "", None
        name = key(*_content(Path(wanted)), recipe(*RECIPE))

    def build(folder: Path) -> None:
        unpacked = folder / "unpacked"
        if package:
            archive.unpack(package, unpacked)
        elif os.path.isfile(wanted):
            run("dpkg", "-x", wanted, unpacked)
        _build(folder, Path(wanted) if os.path.isdir(wanted) and not package else unpacked, extra)
        shutil.rmtree(unpacked, ignore_errors=not unpacked.exists())

    made = cache.entry("kernels", name, build)
    return Kernel((made / "release").read_text(), made / "vmlinuz", made / "initrd", made / "modules.ext4")


def is_series(wanted: str) -> bool:
    return re.fullmatch(r"\d+\.\d+", wanted) is not None


def _content(path: Path) -> list[str]:
    """What a kernel at a path consists of."""
    if path.is_file():
        with open(path, "rb") as file:
            return [hashlib.file_digest(file, "sha256").hexdigest()]
    if not path.is_dir():
        raise VmError(f"no kernel {path}: a series as 6.1, a .deb or a directory is wanted")
    return [str(path.absolute())] + [
        f"{name.relative_to(path)} {(status := name.lstat()).st_size} {status.st_mtime_ns}"
        for name in sorted(path.rglob("*"))
    ]


def _build(folder: Path, source: Path, extra: Path | None) -> None:
    images = [image for pattern in IMAGES for image in sorted(source.glob(pattern))]
    if not images:
        raise VmError(f"no kernel in {source}: none of {', '.join(IMAGES)}")
    shutil.copy(images[-1], folder / "vmlinuz")
    release = release_of(folder / "vmlinuz")
    (folder / "release").write_text(release)
    tree = folder / "tree/lib/modules" / release
    found = [source / place / release for place in MODULES if (source / place / release).is_dir()]
    if found:
        shutil.copytree(found[0], tree, symlinks=True, ignore=shutil.ignore_patterns("build", "source", "sound"))
    else:
        tree.mkdir(parents=True)  # all is built in
    if extra is not None:
        shutil.copytree(extra, tree / "extra", ignore=shutil.ignore_patterns("log"))
    run("depmod", "-b", folder / "tree", release)
    initrd.write(folder / "initrd", tree, Path(programs.BUSYBOX))
    ext4.image_of(tree, folder / "modules.ext4")
    shutil.rmtree(folder / "tree")


def release_of(image: Path) -> str:
    """What `uname -r` will say (Linux x86 boot protocol, field kernel_version)."""
    with open(image, "rb") as file:
        head = file.read(0x8000)
    if head[0x202:0x206] != b"HdrS":
        raise VmError(f"{image} is no kernel for this machine")
    start = struct.unpack_from("<H", head, 0x20E)[0] + 0x200
    return head[start : head.index(b"\0", start)].split()[0].decode()
