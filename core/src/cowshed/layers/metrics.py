"""Metrics of drivers: what each did, how often, how long, how often in vain, summed over all commands since the boot.

A command counts while it works and appends its sums to RUN/metrics as it ends: one line for each thing, fields apart by
tabs. The file is folded when it has grown; its lock (flock(2)) is held for the moment of a write. It lies in memory
and is nobody's truth: what cannot be written is not counted.
"""

from __future__ import annotations

import fcntl
import os

from cowshed import log
from cowshed.errors import StoreError
from cowshed.storage.kit.counting import Counter
from cowshed.storage.record import record

_FILE = "metrics"
_LARGE = 64 << 10  # bytes from which on the file is folded

_counters: dict[str, Counter] = {}  # of this process, by driver


@record(frozen=True)
class Row:
    driver: str
    kind: str  # operation, run, call, mount, sync
    name: str
    count: int
    failed: int
    seconds: float  # in all
    longest: float  # seconds


def counter(driver: str) -> Counter:
    """What counts for a driver in this process."""
    if driver not in _counters:
        _counters[driver] = Counter()
    return _counters[driver]


def write(run: str) -> None:
    """Append what this process has counted to the metrics of a run directory, and forget it."""
    found = [
        Row(
            driver, each["kind"], _name(driver, each["kind"], each["name"]), each["count"], each["failed"],
            each["seconds"], each["longest"],
        )
        for driver, counted in _counters.items()
        for each in counted.sums.rows()
    ]  # fmt: skip
    _counters.clear()
    if not found:
        return
    try:
        fd = _locked(run)
        try:
            size = os.lseek(fd, 0, os.SEEK_END)
            os.write(fd, _lines(found))
            if size > _LARGE:
                _fold(run, fd)
        finally:
            os.close(fd)
    except OSError as error:
        log.info(f"what the drivers did is not counted: {error}")


def _name(driver: str, kind: str, name: str) -> str:
    return name.removeprefix(f"{driver}.") if kind == "operation" else " ".join(name.split())


def read(run: str) -> list[Row]:
    """Sums of all commands, the longest first. StoreError."""
    try:
        with open(f"{run}/{_FILE}", "rb") as file:
            data = file.read()
    except FileNotFoundError:
        return []
    except OSError as error:
        raise StoreError(f"the metrics cannot be read: {error}") from None
    return _sums(data)


def forget(run: str) -> None:
    """Count from nothing again. OSError."""
    try:
        fd = _locked(run, 0)
    except FileNotFoundError:
        return
    try:
        os.ftruncate(fd, 0)
    finally:
        os.close(fd)


def _locked(run: str, flags: int = os.O_CREAT) -> int:
    """A descriptor of the file that has the name when its lock is held: another may have folded it meanwhile."""
    while True:
        fd = os.open(f"{run}/{_FILE}", os.O_RDWR | os.O_CLOEXEC | flags, 0o600)
        fcntl.flock(fd, fcntl.LOCK_EX)
        if os.fstat(fd).st_nlink:
            return fd
        os.close(fd)


def _fold(run: str, fd: int) -> None:
    """Put one line for each thing in the place of many. Who is killed meanwhile leaves the file as it was."""
    with open(f"{run}/{_FILE}.new", "wb") as new:
        new.write(_lines(_sums(os.pread(fd, os.fstat(fd).st_size, 0))))
    os.rename(new.name, f"{run}/{_FILE}")


def _lines(rows: list[Row]) -> bytes:
    return "".join(
        f"{row.driver}\t{row.kind}\t{row.name}\t{row.count}\t{row.failed}\t{row.seconds:.6f}\t{row.longest:.6f}\n"
        for row in rows
    ).encode("utf-8", "replace")


def _sums(data: bytes) -> list[Row]:
    """A line that a killed command has not finished counts for nothing."""
    found: dict[tuple[str, ...], Row] = {}
    for line in data.decode("utf-8", "replace").splitlines():
        words = line.split("\t")
        try:
            driver, kind, name, count, failed, seconds, longest = words
            row = Row(driver, kind, name, int(count), int(failed), float(seconds), float(longest))
        except ValueError:
            continue
        before = found.get((driver, kind, name))
        if before is not None:
            row = Row(
                driver, kind, name, before.count + row.count, before.failed + row.failed,
                before.seconds + row.seconds, max(before.longest, row.longest),
            )  # fmt: skip
        found[driver, kind, name] = row
    return sorted(found.values(), key=lambda row: (-row.seconds, row.driver, row.kind, row.name))
