"""The real engine's half around the driver under test: database, locks, journal, proof that a layer is unused.

One Engine is one command: a process that needs another makes another, on the same root.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Self

from cowshed.errors import NotFound
from cowshed.layers import activation
from cowshed.layers.host import EngineHost
from cowshed.layers.layers import Layers
from cowshed.state import containers, drivers, images, journal
from cowshed.state import layers as rows
from cowshed.state.rows import ContainerRow, DriverRow, ImageRow
from cowshed.state.store import open_store
from cowshed.storage import api, options
from cowshed_conformance import steps, tree
from cowshed_conformance.target import Target

_PATIENCE = 15.0  # seconds for another command that looks whether the layer was left by a dead one


class Engine:
    def __init__(self, target: Target, root: str, run: str = "", *, write: bool = True, freeing: bool = False) -> None:
        self.target, self.root = target, root
        self.store = open_store(root, run or root + ".run", write=write, freeing=freeing)
        plugin, name = target.plugin, target.plugin.name
        place = f"{root}/drivers/{name}"
        row = drivers.get(self.store, name)
        if row is None:
            self.store.locks.exclude(f"driver.{name}", wait=30)
            identity = plugin.init(place, target.at(place), EngineHost())
            row = DriverRow(name, identity, options.fixed(plugin, target.at(place)), {})
            with self.store.transaction() as tx:
                drivers.insert(tx, row)
            self.store.locks.let_go(f"driver.{name}")
        driver = plugin.open(place, target.at(place), EngineHost(), store=api.StoreId(row.store))
        self.layers = Layers(self.store, name, driver)

    @property
    def driver(self) -> api.Driver:
        return self.layers.driver

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self.driver.close()
        self.store.close()

    # ------------------------------------------------------------ what commands do

    def pull(self, letters: str = "abc", *, durability: str = "commit") -> ImageRow:
        """An image of one layer for each letter, with a file of that name; what is there already is used."""
        image = image_of(letters)
        top: api.Layer | None = None
        made = []
        for letter, chain, diff in zip(letters, image.chain_ids, image.diff_ids, strict=True):
            there = self.layers.by_chain_id(chain)
            if there is None:
                active = self.layers.begin(top)
                with self.mount(active) as path:
                    steps.do(path, steps.file(letter, letter.encode() * 10_000))
                there = self.layers.seal(active)
                made.append((there, chain, diff))
            top = there
        self.layers.publish(made, durability, lambda tx: images.insert(tx, image))
        return image

    def create(self, image: ImageRow, name: str = "") -> api.Layer:
        """The layer of a new container, written down; nobody works on it afterwards. A container of that name too, if
        there is one. NotFound, Busy, Conflict."""
        top = self.layers.by_chain_id(image.chain_ids[-1])
        if top is None:
            raise NotFound("the image went meanwhile")
        with self.store.transaction() as tx:
            active = self.layers.reserve(tx, top, "prepare")
            if name:
                row = ContainerRow(active.number, active.id, name, image.id, "", self.layers.name, "created", 0, {})
                containers.insert(tx, row)
        active = self.layers.prepare(active)
        with self.store.transaction() as tx:
            self.layers.finish(tx, active)
        self.release(active)
        return active

    def remove(self, layer: api.Layer) -> None:
        self.store.locks.take("layers", layer.number, wait=_PATIENCE)
        try:
            with self.store.transaction() as tx:
                self.layers.intend_removal(tx, layer.number)
            try:
                self.layers.remove(layer)
            except BaseException:
                with self.store.transaction() as tx:
                    journal.end(tx, layer.number)
                raise
            with self.store.transaction() as tx:
                rows.delete(tx, layer.number)
        finally:
            self.release(layer)

    def commit(self, layer: api.Layer) -> api.Layer:
        self.store.locks.take("layers", layer.number, wait=_PATIENCE)
        try:
            return self.layers.commit(layer)
        finally:
            self.release(layer)

    def untag(self, image: ImageRow) -> None:
        with self.store.transaction() as tx:
            images.delete(tx, image.id)
        self.layers.remove_unreferenced()

    def recover(self) -> int:
        """Redo or undo what dead commands began, as the next one that writes does; how much there was."""
        found = 0
        for entry in journal.list_all(self.store):
            if not self.store.locks.try_take("layers", entry.number):
                continue
            if journal.get(self.store, entry.number) is not None:
                found += 1
                if self.layers.repair(entry.number, entry.op):
                    with self.store.transaction() as tx:
                        rows.delete(tx, entry.number)
            self.store.locks.release("layers", entry.number)
        activation.recover(self.store, lambda _: self.layers)
        return found

    def everything(self) -> None:
        image = self.pull()
        self.remove(self.create(image))
        self.commit(self.create(image))
        self.untag(image)
        self.layers.purge(5)

    def clear(self) -> None:
        """Remove every container's layer and every image."""
        for row in rows.list_all(self.store, self.layers.name):
            if row.kind == "active":
                self.remove(self.layers.load(row.number))
        with self.store.transaction() as tx:
            tx.execute("delete from chains")
            tx.execute("delete from images")
        self.layers.remove_unreferenced()
        self.layers.purge(120)

    # ------------------------------------------------------------ looking

    @contextmanager
    def mount(self, layer: api.Layer, *, read_only: bool = False) -> Iterator[str]:
        with self.layers.mounted(layer, read_only=read_only) as fd:
            yield f"/proc/self/fd/{fd}"

    def look(self, layer: api.Layer) -> dict[str, tree.Node]:
        with self.mount(layer, read_only=True) as path:
            return tree.read(path)

    def findings(self) -> Sequence[str]:
        return sorted(finding.code for finding in self.layers.check())

    def release(self, layer: api.Layer) -> None:
        for name in ("layers", "containers"):
            self.store.locks.release(name, layer.number)


def image_of(letters: str) -> ImageRow:
    diffs = tuple(f"sha256:{ord(letter):064x}" for letter in letters)
    id_ = f"sha256:{int.from_bytes(os.fsencode(letters), 'big'):064x}"
    return ImageRow(id_, id_, b"{}", "application/x", b"{}", diffs, images.chain_ids(diffs), (), "linux/amd64", 0, 0, 0)
