"""All that takes space in a store at one moment, and who needs it.

A *unit* is what is removed as a whole: a layer in a driver, an archive (the blob that a layer came in), a volume. A
*holder* is what a user can remove: an image, a container, a volume, or the work of a running command. A unit stays for
as long as it has a holder; one without is left over and goes with the next `storage gc`.
"""

from __future__ import annotations

import os

from cowshed import log
from cowshed.container import state
from cowshed.errors import Ambiguous, CowshedError, NotFound
from cowshed.image.blobs import BlobStore
from cowshed.image.reference import familiar
from cowshed.layers.health import warn_of_health
from cowshed.state import containers, conversions, drivers, images, journal, layers, leases, volumes
from cowshed.storage.errors import StorageError
from cowshed.storage.kit.trees import measure_tree
from cowshed.storage.record import record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Collection

    from cowshed.engine import Engine
    from cowshed.layers.layers import Layers
    from cowshed.state.rows import ContainerRow, ImageRow, LayerRow

    Key = tuple[str, str]  # layer and its id, archive and its digest, volume and its name
    Holder = tuple[str, str]  # image or container and its id, volume and its name, work and what it is, conversion

_DIGITS = 4  # of an id, at least


@record(frozen=True)
class Unit:
    """What is removed as a whole."""

    kind: str  # layer, archive, volume
    id: str
    driver: str  # of a layer
    size: int | None  # bytes that come back on removal; None if its driver cannot tell now
    exact: bool  # counted, not walked

    @property
    def key(self) -> Key:
        return self.kind, self.id


class Inventory:
    """Read from the store without waiting for anybody; `measure` asks the drivers."""

    def __init__(self, engine: Engine) -> None:
        store = engine.reader
        self._engine = engine
        self.layers: dict[str, LayerRow] = {}
        self.drivers = drivers.names(store)
        for name in self.drivers:
            self.layers.update((row.id, row) for row in layers.list_all(store, name))
        self._by_number = {row.number: row for row in self.layers.values()}
        self.images: dict[str, ImageRow] = {}
        self.names: dict[str, list[str]] = {}
        for image, names in images.list_all(store):
            self.images[image.id], self.names[image.id] = image, list(map(familiar, names))
        self.containers: dict[str, ContainerRow] = {row.id: row for row in containers.list_all(store)}
        self.states = {row.id: state.now(engine, row).state for row in self.containers.values()}
        self.volumes = {row.name: volumes.users(store, row.name) for row in volumes.list_all(store)}
        self.units: dict[Key, Unit] = {}
        self.holders: dict[Key, set[Holder]] = {}
        self._hold()

    def _hold(self) -> None:
        chains: dict[str, list[str]] = {}
        for image in self.images.values():
            for chain in image.chain_ids:
                chains.setdefault(chain, []).append(image.id)
            for digest, _, _ in image.blobs:
                self._held(("archive", digest), ("image", image.id))
        for row in self.layers.values():
            for id_ in chains.get(row.chain_id or "", ()):
                self._held(("layer", row.id), ("image", id_))
        for container in self.containers.values():
            for row in self.chain_of(container.number):
                self._held(("layer", row.id), ("container", container.id))
        store = self._engine.reader
        for entry in journal.list_all(store):
            mine = self._by_number.get(entry.number)
            if mine is not None and mine.number not in {c.number for c in self.containers.values()}:
                for row in self.chain_of(entry.number):
                    self._held(("layer", row.id), ("work", f"{entry.op} of layer {mine.id[:12]}"))
        for each in conversions.list_all(store):
            if each.container is not None:  # images hold their layers in every driver
                for row in self.chain_of(each.layer):
                    self._held(("layer", row.id), ("conversion", "until it is accepted"))
        for digest in leases.leased(store):
            self._held(("archive", digest), ("work", "a running command"))
        for name in self.volumes:
            self._held(("volume", name), ("volume", name))

    def _held(self, key: Key, holder: Holder) -> None:
        self.holders.setdefault(key, set()).add(holder)

    def chain_of(self, number: int) -> list[LayerRow]:
        """A layer, its parent, … down to the base; empty if it is not there."""
        found = []
        at: int | None = number
        while at is not None and at in self._by_number:
            row = self._by_number[at]
            found.append(row)
            at = row.parent
        return found

    def image_name(self, id_: str) -> str:
        """What people call an image: a name of it, else the beginning of its id."""
        return (self.names[id_] or [id_[7:19]])[0]

    def said(self, holder: Holder) -> str:
        """A holder in words."""
        kind, id_ = holder
        if kind == "image":
            return f"image {self.image_name(id_)}"
        return f"container {self.containers[id_].name}" if kind == "container" else f"{kind} {id_}"

    def find(self, text: str) -> Holder:
        """What a user calls a container, an image or a volume. NotFound, Ambiguous."""
        try:
            return "container", containers.find(self._engine.reader, text).id
        except NotFound:
            pass
        try:
            return "image", self._engine.image(text).id
        except NotFound:
            if text in self.volumes:
                return "volume", text
        raise NotFound(f"no such container, image or volume: {text}", remedy="cowshed storage df lists them")

    def find_layer(self, text: str) -> LayerRow:
        """By number, or by the beginning of its id, its chain id or its diff id. NotFound, Ambiguous."""
        if text.isdigit() and int(text) in self._by_number:
            return self._by_number[int(text)]
        digits = text.removeprefix("sha256:")
        fits = [
            row
            for row in self.layers.values()
            if len(digits) >= _DIGITS
            and (
                row.id.startswith(digits) or any((x or "")[7:].startswith(digits) for x in (row.chain_id, row.diff_id))
            )
        ]
        if not fits:
            raise NotFound(f"no such layer: {text}", remedy="cowshed storage tree lists them")
        if len(fits) > 1:
            raise Ambiguous(f"{text} fits {len(fits)} layers", remedy="give the id that cowshed storage tree shows")
        return fits[0]

    def users_of(self, id_: str) -> list[Holder]:
        """The containers of an image."""
        return [("container", c.id) for c in self.containers.values() if c.image_id == id_]

    # ------------------------------------------------------------ sizes

    def measure(self) -> Inventory:
        """Fill `units`: every layer is measured by its driver, which may walk its tree. Those of a driver that cannot
        be opened have no size, and it is told."""
        for name in sorted({row.driver for row in self.layers.values()}):
            held: Layers | None = None
            try:
                held = self._engine.look(name)
                warn_of_health(held)
            except (CowshedError, StorageError, OSError) as error:
                log.warn(f"the layers of driver {name} are left out: it cannot be opened: {error}")
            for row in self.layers.values():
                if row.driver == name:
                    self._put(_layer(held, row))
        blobs = BlobStore(self._engine.reader.root)
        for digest in {*blobs.digests(), *blobs.dropped()}:
            self._put(Unit("archive", digest, "", blobs.takes(digest), True))
        for name in self.volumes:
            path = f"{self._engine.reader.root}/volumes/{name}"
            self._put(Unit("volume", name, "", measure_tree(path)[0] if os.path.isdir(path) else 0, False))
        return self

    def _put(self, unit: Unit) -> None:
        self.units[unit.key] = unit

    def holders_of(self, unit: Unit) -> set[Holder]:
        return self.holders.get(unit.key, set())

    def freed_by(self, holders: Collection[Holder]) -> list[Unit]:
        """What nobody would hold any more without these."""
        gone = set(holders)
        return [u for u in self.units.values() if self.holders_of(u) and self.holders_of(u) <= gone]


def _layer(held: Layers | None, row: LayerRow) -> Unit:
    if held is not None:
        try:
            used = held.usage(held.load(row.number))
            return Unit("layer", row.id, row.driver, used.own, used.exact)
        except (CowshedError, StorageError, OSError) as error:  # removed meanwhile, or missing, as a check tells
            log.info(f"layer {row.id[:12]} of driver {row.driver} cannot be measured: {error}")
    return Unit("layer", row.id, row.driver, None, False)
