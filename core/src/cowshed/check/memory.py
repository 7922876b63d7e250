"""What a deep check has verified, so that one that was interrupted goes on (`--continue`): cache/check.json.

A blob is known by its digest and by inode, size and time of its file; a layer, which cannot be changed, by its id and
the boot. What was found wrong is not remembered: it is looked at again.
"""

from __future__ import annotations

import os
from time import monotonic

from cowshed_linux import files
from cowshed_runtime.fastjson import dumps, loads

TYPE_CHECKING = False
if TYPE_CHECKING:
    from cowshed.state.store import Store

_EVERY = 5.0  # seconds between two writings


class Memory:
    def __init__(self, store: Store, *, resume: bool) -> None:
        self._path = f"{store.root}/cache/check.json"
        self.known: dict[str, dict[str, str]] = {"blob": {}, "layer": {}}
        self.counts = {"blob": 0, "layer": 0}  # verified by this process
        self._written = monotonic()
        if resume:
            self._load()

    def _load(self) -> None:
        try:
            with open(self._path, "rb") as file:
                value = loads(file.read())
        except (FileNotFoundError, ValueError):
            return
        for kind, known in self.known.items():
            listed = value.get(kind) if isinstance(value, dict) else None
            if isinstance(listed, dict):
                known.update({str(name): str(mark) for name, mark in listed.items()})

    def has(self, kind: str, name: str, mark: str) -> bool:
        return self.known[kind].get(name) == mark

    def add(self, kind: str, name: str, mark: str) -> None:
        self.known[kind][name] = mark
        self.counts[kind] += 1
        if monotonic() - self._written > _EVERY:
            self.save()

    def save(self) -> None:
        files.write_atomically(self._path, dumps(self.known).encode(), durable=False)
        self._written = monotonic()

    def forget(self) -> None:
        """At the end of a check that came through."""
        try:
            os.unlink(self._path)
        except FileNotFoundError:
            return

    @property
    def said(self) -> str:
        """How far it has come."""
        return f"{len(self.known['blob'])} blobs and {len(self.known['layer'])} layers are verified"
