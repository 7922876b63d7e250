"""The lock files of a store: who works on what, released by the kernel when the holder dies.

Order: store < driver < containers < layers < mounts < transaction. Byte N of `containers`, `layers`, `mounts` and
`monitors` belongs to number N; a container and its active layer have the same number. Byte of `chains`: a hash of the
chain id, so that one layer is never realised twice at once.
"""

from __future__ import annotations

import os

from cowshed.errors import Busy
from cowshed_linux import locks

_PATIENCE = 0.005


class Locks:
    def __init__(self, folder: str) -> None:
        self._folder = folder
        self._files: dict[str, int] = {}

    def file(self, name: str) -> int:
        """The descriptor that this process locks `name` with."""
        if name not in self._files:
            self._files[name] = locks.open_file(f"{self._folder}/{name}")
        return self._files[name]

    def take(self, name: str, byte: int, *, wait: float = 0.0, what: str = "") -> None:
        """Lock a byte; Busy if another holds it for longer than wait seconds."""
        fd = self.file(name)
        if locks.lock_byte(fd, byte, wait=False):
            return
        if wait > 0:
            from time import monotonic, sleep

            until = monotonic() + wait
            while monotonic() < until:
                sleep(_PATIENCE)
                if locks.lock_byte(fd, byte, wait=False):
                    return
        raise Busy(f"{what or f'{name} {byte}'} is being worked on by another command", remedy="try again")

    def try_take(self, name: str, byte: int) -> bool:
        return locks.lock_byte(self.file(name), byte, wait=False)

    def release(self, name: str, byte: int) -> None:
        locks.unlock_byte(self.file(name), byte)

    def held(self, name: str, byte: int) -> bool:
        """Whether another process holds the byte."""
        return locks.byte_is_locked(self.file(name), byte)

    def close(self) -> None:
        for fd in self._files.values():
            os.close(fd)
        self._files.clear()


def chain_byte(driver: str, chain_id: str) -> int:
    """The byte of `chains` for a layer of a driver: 48 bits of its digest, moved by the driver's name."""
    spread = 0
    for letter in driver.encode():
        spread = (spread * 257 + letter) & 0xFFFFFFFFFFFF
    return int(chain_id.rpartition(":")[2][:12], 16) ^ spread
