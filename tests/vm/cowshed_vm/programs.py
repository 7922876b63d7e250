"""Programs of the host: are they there, and run one."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import IO, Any

from cowshed_vm.errors import NotHere, VmError

SBIN = "/usr/sbin:/sbin"  # a plain user's PATH lacks them
BUSYBOX = "/bin/busybox"  # static: the one program of the initial file system
KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"
BUILD = {  # a program or file, and the Debian package that brings it
    "apt-get": "apt",
    "dpkg": "dpkg",
    "mmdebstrap": "mmdebstrap",
    "mke2fs": "e2fsprogs",
    "depmod": "kmod",
    BUSYBOX: "busybox-static",
    KEYRING: "debian-archive-keyring",
}
COMPILE = {
    "gcc-12": "gcc-12",
    "make": "make",
    "strip": "binutils",
    "/usr/include/stdio.h": "libc6-dev",
    "/usr/lib/x86_64-linux-gnu/libelf.so.1": "libelf1",
}
RUN = {"qemu-system-x86_64": "qemu-system-x86", "mke2fs": "e2fsprogs", "setpriv": "util-linux", "git": "git"}


def find(name: str) -> str | None:
    if name.startswith("/"):
        return name if os.path.exists(name) else None
    return shutil.which(name, path=f"{os.environ.get('PATH', os.defpath)}:{SBIN}")


def require(tools: dict[str, str]) -> None:
    """Raises NotHere: the packages of what is missing."""
    missing = sorted({package for tool, package in tools.items() if find(tool) is None})
    if missing:
        raise NotHere(f"Debian packages are missing: apt-get install --no-install-recommends {' '.join(missing)}")


def run(*argv: str | Path, cwd: Path | None = None, log: Path | None = None, **extra: str) -> str:
    """Run a program to its end and return what it prints; extra: more environment. With log both streams go there.

    Raises VmError: it failed, with the last line that it printed.
    """
    words = [str(word) for word in argv]
    words[0] = find(words[0]) or words[0]
    env = {**os.environ, "PATH": f"{os.environ.get('PATH', os.defpath)}:{SBIN}", "LC_ALL": "C.UTF-8", **extra}
    if log is None:
        return _run(words, cwd, env, subprocess.PIPE)
    with open(log, "a", encoding="utf-8") as file:
        return _run(words, cwd, env, file)


def _run(words: list[str], cwd: Path | None, env: dict[str, str], out: int | IO[str]) -> str:
    errors = subprocess.PIPE if isinstance(out, int) else subprocess.STDOUT
    how = {"cwd": cwd, "env": env, "stdout": out, "stderr": errors, "text": True, "errors": "replace"}
    with started(words, **how) as process:
        printed, complained = process.communicate()
    if process.returncode:
        said = (complained or printed or "").strip().splitlines()
        why = said[-1] if said else f"exit status {process.returncode}"
        if not isinstance(out, int):
            why += f", see {out.name}"
        raise VmError(f"{os.path.basename(words[0])} {' '.join(words[1:3])} failed: {why}")
    return printed or ""


class Signals:
    """Whether one has come while a program was being started: until its pid is known, nobody could end it."""

    starting = False
    late = 0


@contextlib.contextmanager
def signals_raise() -> Iterator[None]:
    """SIGTERM, SIGINT and SIGHUP unwind as an exit does, so that programs end and their files go."""

    def leave(number: int, _: FrameType | None) -> None:
        if not Signals.starting:
            raise SystemExit(128 + number)
        Signals.late = number

    old = {number: signal.signal(number, leave) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def started(words: list[str], **how: Any) -> Iterator[subprocess.Popen[Any]]:
    """A program in a process group of its own, which ends with the block. how: as for Popen."""
    Signals.starting = True
    process = subprocess.Popen(words, stdin=subprocess.DEVNULL, start_new_session=True, **how)
    try:
        with process:
            try:
                Signals.starting = False
                if Signals.late:
                    raise SystemExit(128 + Signals.late)
                yield process
            finally:
                if process.poll() is None:  # with all that it has started: a compiler would go on writing
                    os.killpg(process.pid, signal.SIGKILL)
    finally:
        Signals.starting = False
