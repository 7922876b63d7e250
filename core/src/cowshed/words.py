"""Quantities in words."""

from __future__ import annotations


def size(count: float, gap: str = " ") -> str:
    """Bytes, as sentences have them: 12 kB, 1.5 GB. Without a gap as docker writes them in columns."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 999.5:  # what is rounded to 1000 is one of the next
            return f"{count:.3g}{gap}{unit}"
        count /= 1000
    return f"{count:.3g}{gap}TB"
