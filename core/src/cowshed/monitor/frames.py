"""The log of a container: frames of raw bytes, rendered by `cowshed logs`.

    16 bytes of header: time (ns since the epoch, u64), length (u32), stream (1 stdout, 2 stderr; u8), 3 unused
    length bytes as the container wrote them

Encoding each line as JSON would cap output at a fifth of what this takes.
"""

from __future__ import annotations

from _struct import Struct

HEADER = Struct("<QIB3x")
STDOUT, STDERR = 1, 2
