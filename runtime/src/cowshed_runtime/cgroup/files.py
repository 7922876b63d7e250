"""Reading and writing the small files of the kernel that control groups and their like are made of."""

from __future__ import annotations

import os


def read(path: str) -> str:
    """The whole text of a file; FileNotFoundError if there is none."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        text = b""
        while block := os.read(fd, 1 << 16):
            text += block
        return text.decode(errors="surrogateescape")
    finally:
        os.close(fd)


def write(path: str, value: str) -> None:
    """Set a limit. OSError names the file and the value; ENOENT: this kernel has no such file."""
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        raise OSError(2, f"{path}: this kernel has no such limit") from None
    try:
        os.write(fd, value.encode())
    except OSError as error:
        raise OSError(error.errno, f"{path}: cannot be set to {value}: {os.strerror(error.errno or 0)}") from None
    finally:
        os.close(fd)
