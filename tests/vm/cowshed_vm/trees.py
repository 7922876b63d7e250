"""The project as disks: its source as it is now, compiled, and its virtual environment."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterable
from pathlib import Path

from cowshed_vm import ext4, root
from cowshed_vm.cache import Cache, key, recipe
from cowshed_vm.errors import VmError

KEPT = 24  # of source disks, some 10 MB each: every edit makes one


def source(cache: Cache, tree: Path) -> Path:
    """A disk with the files that git does not ignore, with what Python makes of them."""
    names = _not_ignored(tree)
    disk = cache.entry("sources", _name(tree, names), lambda folder: _build_source(folder, tree, names)) / "disk"
    cache.prune("sources", KEPT)
    return disk


def environment(cache: Cache, venv: Path) -> Path:
    """A disk with .venv. Raises VmError: another Python than the guest's made it."""
    python = os.path.realpath(venv / "bin/python")
    if python != f"/usr/bin/python{root.PYTHON}":
        made = f"was made by {python}" if os.path.exists(python) else "is missing"
        raise VmError(
            f"the guest runs Debian's Python {root.PYTHON}, {venv} {made}: PYTHON=/usr/bin/python3 make setup"
        )
    names = sorted(
        os.path.relpath(os.path.join(folder, name), venv) for folder, _, files in os.walk(venv) for name in files
    )
    disk = cache.entry("environments", _name(venv, names), lambda folder: ext4.image_of(venv, folder / "disk")) / "disk"
    cache.prune("environments", 12)
    return disk


def _name(tree: Path, names: Iterable[str]) -> str:
    """A key that changes when a file does: by size and time, as make judges."""
    found = [str(tree)]
    for name in names:
        status = os.lstat(tree / name)
        found.append(f"{name}\0{status.st_mode} {status.st_size} {status.st_mtime_ns}")
    return key(*found, recipe("trees.py", "ext4.py"))


def _not_ignored(tree: Path) -> list[str]:
    done = subprocess.run(
        ["git", "-C", tree, "ls-files", "-coz", "--exclude-standard"],
        capture_output=True,
        text=True,
        errors="surrogateescape",
    )
    if done.returncode:
        raise VmError(f"which files belong to {tree}? {done.stderr.strip().splitlines()[-1]}")
    names = set(done.stdout.split("\0")) - {""}
    return sorted(name for name in names if os.path.lexists(tree / name))


def _build_source(folder: Path, tree: Path, names: list[str]) -> None:
    copy = folder / "tree"
    (copy / ".venv").mkdir(parents=True)  # where the other disk is mounted
    for name in names:
        _place(tree / name, copy / name)
        if name.endswith(".py"):
            _place_compiled(tree / name, copy / name)
    # What is missing or stale. The paths in it are those of the tree, where the guest has it too.
    compiler = [f"/usr/bin/python{root.PYTHON}", "-m", "compileall", "-q", "-s", str(copy), "-p", str(tree), str(copy)]
    subprocess.run(
        compiler, stdout=subprocess.DEVNULL, stdin=subprocess.DEVNULL
    )  # a syntax error is the tests' to tell
    ext4.image_of(copy, folder / "disk")
    shutil.rmtree(copy)


def _place_compiled(file: Path, target: Path) -> None:
    """What earlier runs left beside a module, pytest's rewritten tests among it: Python checks that it fits."""
    tag = f".cpython-{root.PYTHON.replace('.', '')}"
    for made in (file.parent / "__pycache__").glob(f"{file.stem}{tag}*.pyc"):
        try:
            _place(made, target.parent / "__pycache__" / made.name)
        except FileNotFoundError:
            continue  # another run writes it at this moment


def _place(file: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    if file.is_dir() and not file.is_symlink():  # a repository in the repository
        target.mkdir(exist_ok=True)
        return
    try:
        os.link(file, target, follow_symlinks=False)
    except OSError as error:
        if isinstance(error, FileNotFoundError):
            raise
        shutil.copy2(file, target, follow_symlinks=False)
