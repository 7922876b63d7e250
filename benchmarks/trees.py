"""The tree that the benchmarks of conversions and commits work on."""

from __future__ import annotations

import random

from cowshed_testing.images import LayerTar


def layer(files: int, megabytes: int, *, owners: int = 1) -> LayerTar:
    """Many small files and a few large ones, as in root file systems: a tenth of them has nine tenths of the bytes.
    They belong to so many users in turns."""
    chance = random.Random(1)
    made = LayerTar().dir("tree")
    large = max(files // 10, 1)
    for n in range(files):
        if n % 100 == 0:
            made.dir(f"tree/{n // 100}")
        size = megabytes * 900_000 // large if n % 10 == 0 else megabytes * 100_000 // max(files - large, 1)
        made.file(f"tree/{n // 100}/{n}", chance.randbytes(size), uid=n % owners)
    return made
