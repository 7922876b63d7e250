"""Tables and status lines of thin pools and thin devices, written and read
(Documentation/admin-guide/device-mapper/thin-provisioning.rst)."""

from __future__ import annotations

from cowshed.storage.errors import Damaged

SECTOR = 512
BLOCK = 128  # sectors of a block of our own pools: 64 KiB, the least that a pool takes
METADATA_BLOCK = 4096  # bytes
MAX_ID = (1 << 24) - 1  # thin ids have 24 bits


class PoolTable:
    """What a pool stands on."""

    __slots__ = ("block", "data", "features", "metadata")

    def __init__(self, metadata: str, data: str, block: int, features: frozenset[str]) -> None:
        self.metadata, self.data, self.block, self.features = metadata, data, block, features  # MAJOR:MINOR; sectors


class PoolStatus:
    """How a pool is. Sizes are in blocks: of the data as the table says, of the metadata always 4 KiB."""

    __slots__ = (
        "data_total", "data_used", "discards", "errors_when_full", "metadata_total", "metadata_used", "mode",
        "needs_check", "transaction",
    )  # fmt: skip

    def __init__(
        self, transaction: int, metadata: tuple[int, int], data: tuple[int, int], mode: str, words: frozenset[str]
    ) -> None:
        self.transaction = transaction
        self.metadata_used, self.metadata_total = metadata
        self.data_used, self.data_total = data
        self.mode = mode  # "rw", "ro", "out_of_data_space"
        self.discards = "discard_passdown" in words
        self.errors_when_full = "error_if_no_space" in words
        self.needs_check = "needs_check" in words


def pool_parameters(metadata: str, data: str) -> str:
    """The parameters of a pool of ours. New blocks are zeroed: what lay in them belonged to another layer. A full pool
    answers with errors at once instead of holding every writer for a minute."""
    return f"{metadata} {data} {BLOCK} 0 1 error_if_no_space"


def parse_pool_table(parameters: str) -> PoolTable:
    """Raises Damaged for anything but a thin-pool's parameters."""
    words = parameters.split()
    try:
        count = int(words[4]) if len(words) > 4 else 0
        features = words[5 : 5 + count]
        if len(features) != count or ":" not in words[0] or ":" not in words[1]:
            raise ValueError
        return PoolTable(words[0], words[1], int(words[2]), frozenset(features))
    except (ValueError, IndexError):
        raise Damaged(f"not the table of a thin pool: {parameters!r}") from None


def parse_pool_status(text: str) -> PoolStatus:
    """Raises Damaged: for a pool that has failed, with what to do, and for what is no status of a pool."""
    if text.strip() in ("Fail", "Error"):
        raise Damaged("the thin pool has failed", remedy="see the kernel's log; thin_check(8) tells what is wrong")
    words = text.split()
    try:
        used, total = _pair(words[1])
        data_used, data_total = _pair(words[2])
        mode = words[4]
        if mode not in ("rw", "ro", "out_of_data_space"):
            raise ValueError
        return PoolStatus(int(words[0]), (used, total), (data_used, data_total), mode, frozenset(words[5:]))
    except (ValueError, IndexError):
        raise Damaged(f"not the status of a thin pool: {text!r}") from None


def _pair(word: str) -> tuple[int, int]:
    used, total = word.split("/")
    return int(used), int(total)


def thin_parameters(pool: str, thin: int) -> str:
    return f"{pool} {thin}"


def parse_size(text: str) -> int:
    """Bytes of a size as options say it: 10G, 512M, a number of bytes. ValueError."""
    units = {"K": 10, "M": 20, "G": 30, "T": 40}
    word = text.strip().upper().removesuffix("IB").removesuffix("B")
    shift = units.get(word[-1:], 0)
    count = int(word[:-1] if shift else word)
    if count <= 0:
        raise ValueError
    return count << shift


def loop_sizes(free: int) -> tuple[int, int]:
    """(data, metadata) in bytes of a pool on loop files where so many bytes are free. The data file has holes and may
    promise nearly all of it; the metadata file is allocated at once, as a pool whose metadata cannot be written is
    broken until it is repaired by hand."""
    metadata = max(2 << 20, min(free >> 6, max(16 << 20, free // 400)))
    metadata = min(metadata, 1 << 30) >> 16 << 16
    data = min(free - metadata - (free >> 4), 100 << 30)
    return data >> 16 << 16, metadata
