"""What a store knows of its pool: ROOT/pool/record, and in which state of the pool it was written."""

from __future__ import annotations

import json

from cowshed.storage.errors import Damaged, WrongStore
from cowshed_linux import files

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

LOOP, DEVICES, GIVEN = "loop", "devices", "given"
_FORMAT = 1
_FIELDS = {
    "kind": str, "name": str, "data": str, "metadata": str, "filesystem": str, "uuid": str, "sectors": int,
    "base": int, "transaction": int, "quota": bool, "ready": bool,
}  # fmt: skip


class PoolRecord:
    """
    kind         LOOP: files in ROOT/pool; DEVICES: paths in `data`, `metadata`; GIVEN: a pool that somebody else made
    name         of the pool in device-mapper; "" for LOOP, whose name depends on where the store lies
    filesystem, uuid, sectors   of the base, and so of each layer
    base         thin id of the base; ids of layers are base + 1 … base + RANGE - 1
    transaction  the pool's, or one more: it is written before the pool's is raised
    quota        whether the file systems count by project, and can be limited
    ready        whether init() has finished
    """

    __slots__ = tuple(_FIELDS)

    def __init__(self, **values: Any) -> None:
        for name in _FIELDS:
            setattr(self, name, values[name])

    kind: str
    name: str
    data: str
    metadata: str
    filesystem: str
    uuid: str
    sectors: int
    base: int
    transaction: int
    quota: bool
    ready: bool


def path_of(root: str) -> str:
    return f"{root}/pool/record"


def load(root: str) -> PoolRecord | None:
    """None if there is none. Raises Damaged, and WrongStore for a newer format."""
    try:
        with open(path_of(root), "rb") as file:
            text = file.read(1 << 16)
    except FileNotFoundError:
        return None
    try:
        values = json.loads(text)
        number = values["format"]
    except (ValueError, KeyError, TypeError):
        raise Damaged(f"{path_of(root)} is damaged", remedy="restore it from a backup of the store") from None
    if number != _FORMAT:
        raise WrongStore(f"{path_of(root)} has format {number!r}, not {_FORMAT}", remedy="use a newer Cowshed")
    for name, kind in _FIELDS.items():
        if type(values.get(name)) is not kind:
            raise Damaged(f"{path_of(root)} is damaged: {name}", remedy="restore it from a backup of the store")
    return PoolRecord(**{name: values[name] for name in _FIELDS})


def save(root: str, record: PoolRecord) -> None:
    """Durable on return."""
    values = {"format": _FORMAT, **{name: getattr(record, name) for name in _FIELDS}}
    files.write_atomically(path_of(root), json.dumps(values, indent=1).encode() + b"\n")
