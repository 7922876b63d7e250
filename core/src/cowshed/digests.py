"""Hashing by the algorithms of digests (image-spec descriptor.md, Registered algorithms)."""

from __future__ import annotations

from cowshed.errors import ImageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


def new(algorithm: str, data: bytes = b"") -> Any:
    """What hashes, as hashlib has it, begun with data. ImageError for blake3 without its package."""
    if algorithm == "blake3":
        try:
            from blake3 import blake3
        except ImportError:
            raise ImageError(
                "what is named by blake3 cannot be verified here", remedy="install the package blake3: cowshed[blake3]"
            ) from None
        return blake3(data)
    import hashlib

    return hashlib.new(algorithm, data, usedforsecurity=False)
