"""The ZFS modules, compiled from the source that Debian ships (zfs-dkms; neither dkms nor a chroot is needed)."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from cowshed_vm import programs
from cowshed_vm.archive import Archive
from cowshed_vm.cache import Cache, key, recipe
from cowshed_vm.programs import run

SERIES = "6.1"  # that version of ZFS knows kernels up to 6.2


def modules(cache: Cache, archive: Archive, release: str, version: str) -> Path:
    """The directory with the modules for that kernel (release: of uname; version: of its package)."""
    name = key(release, version, archive.version("zfs-dkms"), recipe("zfs.py"))
    return cache.entry("zfs", name, lambda folder: _build(folder, archive, release))


def _build(folder: Path, archive: Archive, release: str) -> None:
    programs.require(programs.COMPILE)
    work, log = folder / "work", folder / "log"
    work.mkdir()
    abi = release.removesuffix("-cloud-amd64")
    for package in (f"linux-headers-{release}", f"linux-headers-{abi}-common", f"linux-kbuild-{SERIES}"):
        archive.unpack(package, work / "headers")
    archive.unpack("zfs-dkms", work / "zfs")
    headers = work / f"headers/usr/src/linux-headers-{release}"
    common = work / f"headers/usr/src/linux-headers-{abi}-common"
    (headers / "Makefile").write_text(f"include {common}/Makefile\n")  # Debian's names /usr/src
    (source,) = (work / "zfs/usr/src").glob("zfs-*")
    run("./configure", "-q", "--disable-dependency-tracking", "--with-config=kernel", f"--with-linux={common}",
        f"--with-linux-obj={headers}", cwd=source, log=log, CC="gcc-12")  # fmt: skip
    # Without debugging data the objects take a seventh of the space.
    run("make", "-s", f"-j{os.cpu_count()}", "KCFLAGS=-g0", cwd=source, log=log, CC="gcc-12")
    for module in (source / "module").rglob("*.ko"):
        run("strip", "--strip-debug", "-o", folder / module.name, module)
    shutil.rmtree(work)
