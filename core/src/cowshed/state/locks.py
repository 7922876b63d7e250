"""The lock files of a store: who works on what, released by the kernel when the holder dies.

    store        file    shared while a command may write; exclusive to migrate
    driver.NAME  file    exclusive to init and destroy
    containers   byte N  start, stop, removal of container N
    layers       byte N  from before a layer's journal row until after it
    mounts       byte N  whoever has the layer mounted: a monitor for life, others for a moment
    activations  byte N  while what the layer is mounted from is set up, for layers that need that
    monitors     byte N  a monitor for life
    chains       byte    a hash of driver and chain id: a layer is not realised twice at once
    leases       byte    the taker of a lease for its life
    blobs        file    shared to take a lease, exclusive to delete blobs
    gc           file    exclusive to purge; a second one goes away
    convert      file    exclusive to convert, accept and roll back
    records      file    exclusive to write records

Order: store < convert < driver < containers < layers < mounts < activations < transaction. A container and its active
layer have the same number N. The files are never unlinked: two holders could be the result.
"""

from __future__ import annotations

import os

from cowshed.errors import Busy
from cowshed_linux import locks

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

FILES = (
    "store",
    "containers",
    "layers",
    "mounts",
    "activations",
    "monitors",
    "chains",
    "leases",
    "blobs",
    "gc",
    "records",
)
_PATIENCE = 0.005


class Locks:
    """This process's hold on the lock files. A byte taken twice by one process is held once: one release frees it."""

    def __init__(self, folder: str) -> None:
        self._folder = folder
        self._files: dict[str, int] = {}
        self._bytes: set[tuple[str, int]] = set()

    def file(self, name: str) -> int:
        """The descriptor that this process locks `name` with."""
        if name not in self._files:
            self._files[name] = locks.open_file(f"{self._folder}/{name}")
        return self._files[name]

    # ------------------------------------------------------------ bytes

    def take(self, name: str, byte: int, *, wait: float = 0.0, what: str = "") -> None:
        """Lock a byte; Busy if another holds it for longer than wait seconds."""
        if not _until(lambda: self.try_take(name, byte), wait):
            raise Busy(f"{what or f'{name} {byte}'} is being worked on by another command", remedy="try again")

    def try_take(self, name: str, byte: int, *, shared: bool = False) -> bool:
        """Lock a byte if nobody else holds it (shared: if nobody else holds it for itself alone)."""
        taken = locks.lock_byte(self.file(name), byte, shared=shared, wait=False)
        if taken:
            self._bytes.add((name, byte))
        return taken

    def release(self, name: str, byte: int) -> None:
        self._bytes.discard((name, byte))
        locks.unlock_byte(self.file(name), byte)

    def held(self, name: str, byte: int) -> bool:
        """Whether another process holds the byte."""
        return locks.byte_is_locked(self.file(name), byte)

    def mine(self, name: str, byte: int) -> bool:
        """Whether this process holds the byte: F_OFD_GETLK cannot tell that."""
        return (name, byte) in self._bytes

    # ------------------------------------------------------------ whole files

    def share(self, name: str, *, wait: float = 0.0) -> bool:
        """flock a file shared; False if another has it exclusively for longer than wait seconds."""
        fd = self.file(name)
        return _until(lambda: locks.lock_file(fd, shared=True, wait=False), wait)

    def exclude(self, name: str, *, wait: float = 0.0) -> bool:
        """flock a file exclusively; False if another has it for longer than wait seconds."""
        fd = self.file(name)
        return _until(lambda: locks.lock_file(fd, wait=False), wait)

    def let_go(self, name: str) -> None:
        """Undo share or exclude."""
        import fcntl

        fcntl.flock(self.file(name), fcntl.LOCK_UN)

    def close(self) -> None:
        for fd in self._files.values():
            os.close(fd)
        self._files.clear()
        self._bytes.clear()


def _until(attempt: Callable[[], bool], seconds: float) -> bool:
    if attempt():
        return True
    if seconds > 0:
        from time import monotonic, sleep

        end = monotonic() + seconds
        while monotonic() < end:
            sleep(_PATIENCE)
            if attempt():
                return True
    return False


def chain_byte(driver: str, chain_id: str) -> int:
    """The byte of `chains` for a layer of a driver: 48 bits of its digest, moved by the driver's name."""
    spread = 0
    for letter in driver.encode():
        spread = (spread * 257 + letter) & 0xFFFFFFFFFFFF
    return int(chain_id.rpartition(":")[2][:12], 16) ^ spread
