"""Quantities in words, for sentences; columns of listings have docker's form (`cowshed.cli.output.size`)."""

from __future__ import annotations


def size(count: float) -> str:
    """Bytes: 12 kB, 1.5 GB."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} TB"
