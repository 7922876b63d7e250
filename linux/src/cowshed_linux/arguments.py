"""The arguments of this process, as others see them (proc_pid_cmdline(5))."""

from __future__ import annotations

from cowshed_linux.libc import ffi

_START, _END = 48 - 3, 49 - 3  # arg_start and arg_end of proc_pid_stat(5), counted behind the name of the program


def hide(text: str) -> None:
    """Write over every occurrence of a text among the arguments, so that whoever lists processes from now on does not
    see it. OSError if /proc does not tell where they are."""
    secret = text.encode(errors="surrogateescape")
    with open("/proc/self/stat", "rb") as file:
        fields = file.read().rpartition(b")")[2].split()
    start, end = int(fields[_START]), int(fields[_END])
    if not secret or not start:
        return
    memory = ffi.buffer(ffi.cast("char *", start), end - start)
    said, at = bytes(memory), 0
    while (at := said.find(secret, at)) >= 0:
        memory[at : at + len(secret)] = b"x" * len(secret)
        at += len(secret)
