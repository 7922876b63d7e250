"""The libraries that compress and decompress, wherever they are on this machine; imported when they are asked for."""

from __future__ import annotations

import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


def zstd() -> Any:
    """Python's own from 3.14 on, else its backport."""
    if sys.version_info >= (3, 14):
        from compression import zstd
    else:
        from backports import zstd
    return zstd


def isal() -> Any:
    """Intel's, with zlib's interface; None where there is no wheel of it."""
    try:
        from isal import isal_zlib
    except ImportError:
        return None
    return isal_zlib


def deflate() -> Any:
    """isal; else zlib, which has the same interface and is slower."""
    found = isal()
    if found is None:
        import zlib as found
    return found
