"""Names of datasets, and where directories and mounts lie: no call of ZFS here.

DATASET/cowshed-STORE                    of a store; never mounted, holds what the others inherit
DATASET/cowshed-STORE/empty@c            what a layer without parent is cloned from
DATASET/cowshed-STORE/active.ID          a writable layer
DATASET/cowshed-STORE/committed.ID@c     an immutable one: the snapshot is the layer
DATASET/cowshed-STORE/temp.ID            of a call that is running, or died
DATASET/cowshed-STORE/trash.ID[.N]       removed, waits for purge()
…@live.ID                                of active.* and what they came from: a layer was snapshotted while in use
"""

from __future__ import annotations

import os
import re

from cowshed.storage.errors import BadOption

ACTIVE, COMMITTED, TEMP, TRASH = "active", "committed", "temp", "trash"
EMPTY = "empty"
LONGEST = 255 - len("/cowshed-/committed.@zfs-diff-4294967295-0123456789abcdef") - 64  # ZFS_MAX_DATASET_NAME_LEN
_DATASET = re.compile(r"[A-Za-z][A-Za-z0-9_.: -]*(/[A-Za-z0-9_.: -]+)*")
_OBJECT = re.compile(r"(active|committed|temp|trash)\.([0-9a-f]{32})(\.[0-9]+)?")
_ESCAPE = re.compile(r"\\([0-7]{3})")


def check_dataset(name: str) -> str:
    """The name, if it can be one of a dataset below which stores are made. Raises BadOption."""
    if not _DATASET.fullmatch(name) or len(name) > LONGEST:
        raise BadOption(
            f"option dataset of driver zfs is the name of a dataset of at most {LONGEST} characters, not {name!r}",
            remedy="zfs list shows the datasets",
        )
    return name


def store(dataset: str, identity: str) -> str:
    return f"{dataset}/cowshed-{identity}"


def pool(dataset: str) -> str:
    return dataset.partition("/")[0].partition("@")[0]


def parse(name: str) -> tuple[str, str] | None:
    """(kind, layer id) of a dataset of a store, by the last part of its name; None for one of a stranger."""
    found = _OBJECT.fullmatch(name)
    if found is None or (found[3] and found[1] != TRASH):
        return None
    return found[1], found[2]


def mounted_dataset(mountinfo: str, device: str) -> str | None:
    """What of ZFS is mounted as the device "MAJOR:MINOR", by proc_pid_mountinfo(5); None if it is not ZFS or not there.

    It has an @ if it is a snapshot.
    """
    for line in mountinfo.splitlines():
        words = line.split(" ")
        if words[2] == device:
            kind, source = words[words.index("-") + 1 :][:2]
            return unescaped(source) if kind == "zfs" else None
    return None


def unescaped(word: str) -> str:
    """A word of mountinfo, where spaces and the like are octal."""
    return _ESCAPE.sub(lambda found: chr(int(found[1], 8)), word)


def version(text: str) -> tuple[int, ...]:
    """The numbers at the begin of a version: (2, 1, 11) of "zfs-2.1.11-1+deb12u1"."""
    found = re.search(r"[0-9]+(\.[0-9]+)*", text)
    return tuple(int(number) for number in found[0].split(".")) if found else ()


def holders(store: str) -> list[str]:
    """Who has a dataset or snapshot below the store's mounted: "process PID has NAME mounted". A detached mount is seen
    by nobody."""
    found = []
    seen: set[str] = set()
    for pid in sorted((name for name in os.listdir("/proc") if name.isdigit()), key=int):
        try:
            namespace = os.readlink(f"/proc/{pid}/ns/mnt")
            if namespace in seen:
                continue
            seen.add(namespace)
            fd = os.open(f"/proc/{pid}/mountinfo", os.O_RDONLY | os.O_CLOEXEC)
            with open(fd, encoding="utf-8", errors="surrogateescape") as file:
                lines = file.read().splitlines()
        except OSError:
            continue  # it has ended
        for line in lines:
            words = line.split(" ")
            kind, source = words[words.index("-") + 1 :][:2]
            if kind == "zfs" and unescaped(source).startswith(f"{store}/"):
                found.append(f"process {pid} has {unescaped(source)} mounted")
    return found
