"""Which parts of a large blob have come, if several connections bring them.

It is written down behind the blob's bytes in the partial file itself, a number for each part, after the bytes that it
counts: whoever goes on from what a killed process left sees no more bytes than are there. A partial file that is not
longer than the blob has none of this, and has come from its beginning to its end.
"""

from __future__ import annotations

import os
import struct
import threading

SIZE = 16 << 20  # bytes of a part
_HEAD = struct.Struct("<8sQQ")  # magic, where the first part begins, bytes of a part
_COUNT = struct.Struct("<I")
_MAGIC = b"cowparts"


class Segments:
    """The parts of one blob: `take` gives one to a thread, which says by `came` what it has written."""

    def __init__(self, fd: int, size: int) -> None:
        """fd: the partial file of a blob of `size` bytes, with whatever an earlier download left."""
        self._fd, self._size = fd, size
        self._guard = threading.Lock()
        length = os.fstat(fd).st_size
        self._first, self._part, self._counts = length, SIZE, [0] * _parts(size - length, SIZE)
        self.scattered = False  # whether there may be more bytes behind a gap
        if length > size:
            self._read()
        self._taken: set[int] = set()

    def _read(self) -> None:
        head = os.pread(self._fd, _HEAD.size, self._size)
        if len(head) == _HEAD.size:
            magic, first, part = _HEAD.unpack(head)
            if magic == _MAGIC and first <= self._size and 0 < part <= 1 << 30:
                self._first, self._part, self.scattered = first, part, True
                self._counts = [self._count(n) for n in range(_parts(self._size - first, part))]
                return
        os.ftruncate(self._fd, 0)  # not ours: nobody knows which of its bytes are there
        self._first, self._counts = 0, [0] * _parts(self._size, SIZE)

    def _count(self, n: int) -> int:
        data = os.pread(self._fd, _COUNT.size, self._size + _HEAD.size + n * _COUNT.size)
        count: int = _COUNT.unpack(data)[0] if len(data) == _COUNT.size else 0
        return min(count, self._end(n) - self._start(n))

    def _start(self, n: int) -> int:
        return self._first + n * self._part

    def _end(self, n: int) -> int:
        return min(self._start(n) + self._part, self._size)

    # ------------------------------------------------------------ what is there

    def front(self) -> int:
        """The bytes that are there from the beginning on without a gap."""
        at = self._first
        for n, count in enumerate(self._counts):
            at = self._start(n) + count
            if at < self._end(n):
                break
        return at

    def there(self) -> int:
        """The bytes that are there in all."""
        return self._first + sum(self._counts)

    # ------------------------------------------------------------ bringing the rest

    def begin(self) -> None:
        """Make room for the numbers; before the first `came`."""
        if not self.scattered:
            os.pwrite(self._fd, _HEAD.pack(_MAGIC, self._first, self._part), self._size)
            if self._counts:
                os.ftruncate(self._fd, self._size + _HEAD.size + len(self._counts) * _COUNT.size)
            self.scattered = True

    def take(self) -> tuple[int, int, int] | None:
        """(number, first missing byte, end) of the lowest part that lacks bytes and that nobody has; None for none."""
        with self._guard:
            for n, count in enumerate(self._counts):
                if n not in self._taken and self._start(n) + count < self._end(n):
                    self._taken.add(n)
                    return n, self._start(n) + count, self._end(n)
        return None

    def is_left(self) -> bool:
        """Whether there is a part that nobody has taken."""
        return any(
            n not in self._taken and count < self._end(n) - self._start(n) for n, count in enumerate(self._counts)
        )

    def came(self, n: int, count: int) -> None:
        """So many more bytes of a part are in the file."""
        self._counts[n] += count
        os.pwrite(self._fd, _COUNT.pack(self._counts[n]), self._size + _HEAD.size + n * _COUNT.size)


def _parts(count: int, size: int) -> int:
    return max(-(-count // size), 0)
