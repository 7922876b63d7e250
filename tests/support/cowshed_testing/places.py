"""Somewhere to run the engine on each driver: the file system, the pool, the options that it needs; or why not here."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

from cowshed_testing import plugins
from cowshed_testing.filesystems import mounted

if TYPE_CHECKING:
    from collections.abc import Iterator

TOP = Path(__file__).parents[3]
SIZE = "2G"  # of what a place is made on; sparse


class NotHere(Exception):
    """This machine cannot have such a place; why."""


class Place:
    """root: a folder for a store. words: options before the command. command: `cowshed`, with the driver in reach."""

    def __init__(self, driver: str, root: str, words: tuple[str, ...] = (), command: str = "") -> None:
        self.driver, self.root, self.words = driver, root, words
        self.command = command or str(TOP / ".venv/bin/cowshed")


@contextlib.contextmanager
def place(name: str, folder: Path) -> Iterator[Place]:
    """Call in a private mount namespace. name: a driver, DRIVER-FILESYSTEM, or DRIVER@PROGRAM: what stands in for the
    mount of a driver whose file system the kernel lacks. NotHere."""
    name, _, program = name.partition("@")
    driver, _, kind = name.partition("-")
    with contextlib.ExitStack() as stack:
        if driver == "btrfs":
            kind = "btrfs"
        root = folder / "at"
        if kind:
            needs("mkfs.btrfs" if kind == "btrfs" else f"mkfs.{kind}")
            root = Path(stack.enter_context(mounted(kind, str(folder / "disk"), SIZE)))
        root.mkdir(exist_ok=True)
        words: tuple[str, ...] = ()
        command = ""
        if program:
            needs(program)
            command = with_stand_in(folder, driver)
        elif driver == "loops":
            command = with_loops(folder)
        elif driver == "devicemapper":
            if "COWSHED_GUEST" in os.environ:
                subprocess.run(["modprobe", "dm_thin_pool"], check=True)
            words = option("loop_size=1500M", "layer_size=1200M")
        elif driver == "zfs":
            words = option(f"dataset={stack.enter_context(zfs_pool(folder))}")
        yield Place(driver, str(root), words, command)


def option(*pairs: str) -> tuple[str, ...]:
    return tuple(word for pair in pairs for word in ("--driver-option", pair))


def needs(tool: str) -> None:
    if shutil.which(tool) is None:
        raise NotHere(f"{tool} is not installed")


def with_loops(folder: Path) -> str:
    """A command that finds the `loops` driver, as one that was installed beside the engine's packages."""
    if not os.path.exists("/dev/loop-control"):
        raise NotHere("there is no /dev/loop-control")
    points = folder / "distributions"
    points.mkdir()
    plugins.distribution(str(points), "example-loops", {"loops": "cowshed_testing.loops:plugin"}, {})
    return plugins.launcher(folder / "cowshed", points, TOP / "tests/support")


def with_stand_in(folder: Path, driver: str) -> str:
    """A command whose mounts of this driver are made by the stand-in for it, all else being its own."""
    tests = TOP / "drivers" / driver / "tests"
    of = f"{tests}/{(tests / 'stand_in').read_text().split()[1]}"
    before = f"from cowshed_conformance import standins\nstandins.use({of!r})\nstandins.everywhere()\n"
    command = folder / "cowshed"
    ours = (TOP / ".venv/bin/cowshed").read_text()
    command.write_text(ours.replace("from cowshed.cli.main", f"{before}from cowshed.cli.main", 1))
    command.chmod(0o755)
    return str(command)


@contextlib.contextmanager
def zfs_pool(folder: Path) -> Iterator[str]:
    """The name of a pool on a file."""
    needs("zpool")
    if subprocess.run(["modprobe", "zfs"], capture_output=True).returncode:
        raise NotHere("this kernel has no zfs module")
    name, image = f"cowshed{os.getpid()}", folder / "pool"
    with open(image, "wb") as file:
        file.truncate(2 << 30)
    subprocess.run(["zpool", "create", "-f", "-m", "none", name, image], check=True, capture_output=True)
    try:
        yield name
    finally:
        subprocess.run(["zpool", "destroy", "-f", name], check=True, capture_output=True)
