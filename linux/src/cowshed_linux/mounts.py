"""The table of what is mounted, as a process sees it (proc_pid_mountinfo(5))."""

from __future__ import annotations

import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator


class Mount:
    """One line of the table."""

    __slots__ = ("device", "fstype", "options", "point", "source")

    def __init__(self, line: str) -> None:
        words = line.split()
        at = words.index("-")
        self.device = words[2]  # MAJOR:MINOR
        self.point = _unescaped(words[4])
        self.fstype, self.source, self.options = words[at + 1], _unescaped(words[at + 2]), words[at + 3]


def table() -> Iterator[Mount]:
    """What is mounted in this process's namespace, in the order of the kernel."""
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as lines:
        for line in lines:
            yield Mount(line)


def holding(path: str) -> Mount | None:
    """What a path lies on: of the mounts on the way to it the nearest, and of several at one place the last. Not by
    device numbers: each subvolume of btrfs has one of its own."""
    place, found = os.path.realpath(path), None
    for mount in table():
        point = mount.point.rstrip("/")
        nearer = found is None or len(mount.point) >= len(found.point)
        if nearer and (place == point or place.startswith(f"{point}/")):
            found = mount
    return found


def _unescaped(word: str) -> str:
    """Space, tab, newline and backslash are octal."""
    first, *rest = word.split("\\")
    return first + "".join(chr(int(part[:3], 8)) + part[3:] for part in rest)
