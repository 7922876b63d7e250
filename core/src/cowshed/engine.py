"""The engine: settings, store, driver and layers of one command, each opened when it is first needed."""

from __future__ import annotations

import os

from cowshed import log
from cowshed.config import selection
from cowshed.errors import NotFound
from cowshed.state.store import Store, open_store
from cowshed.storage.errors import BadOption

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from cowshed.config.settings import Settings
    from cowshed.layers.layers import Layers
    from cowshed.state.rows import ContainerRow, ImageRow
    from cowshed.trust.gate import Gate


class Engine:
    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.freeing = False  # set by commands that give space back, before they use `store`
        self.looking = False  # set by commands that tell what dead ones left, before they use `store`
        self._store: Store | None = None
        self._reader: Store | None = None
        self.called: Any = None  # a connection to the zygote, made before it is needed
        self._layers: dict[str, Layers] = {}
        self._looked_at: dict[str, Layers] = {}

    @property
    def store(self) -> Store:
        """Open for writing, with what dead commands left repaired."""
        if self._store is None:
            from cowshed.container import recovery

            self._store = open_store(self.settings.root, self.settings.run_root, freeing=self.freeing)
            self._store.layers_of, self._store.drops_archives = self.layers, self.settings.archives == "drop"
            self._store.ignores_trailing = self.settings.trailing == "ignore"
            if not self.looking:
                recovery.recover(self)
        return self._store

    @property
    def is_closed(self) -> bool:
        """Whether this process has no connection to the database yet."""
        return self._store is None and self._reader is None

    @property
    def reader(self) -> Store:
        """Open for reading: never waits."""
        if self._store is not None:
            return self._store
        if self._reader is None:
            self._reader = open_store(self.settings.root, self.settings.run_root, write=False)
            self._reader.layers_of = self.look
            if self._reader.stale:
                log.warn("the store's disk is full; this is what a copy of its database says")
        return self._reader

    def done(self) -> None:
        """At the end of a command. What ends with the process is not closed one by one: that would take time."""
        if self._store is not None:
            self._store.keep_ballast()
        if self._layers or self._looked_at:
            from cowshed.layers import metrics

            store = self.reader
            if self._store is not None or os.path.isdir(store.run):  # who only looks makes nothing
                metrics.write(store.run_directory())

    def stored_driver(self) -> str:
        """The driver that has most of the images' layers, or that they are being converted to; "" if none has any: one
        that was only tried is not chosen.
        Where there is no store, none is made for the question."""
        if self._store is None and not os.path.exists(f"{self.settings.root}/db.sqlite"):
            return ""
        rows = self.reader.query(
            "select name from drivers "
            "where exists (select 1 from layers where driver = name and kind = 'committed') limit 2"
        )
        if len(rows) < 2:
            return str(rows[0][0]) if rows else ""
        rows = self.reader.query(
            "select name from drivers order by name = (select target from conversion) desc, "
            "(select count(*) from layers where driver = name and kind = 'committed') desc limit 1"
        )
        return str(rows[0][0])

    def kept_options(self) -> dict[str, dict[str, Any]]:
        """By driver, the options that creation fixed in this store."""
        if self._store is None and not os.path.exists(f"{self.settings.root}/db.sqlite"):
            return {}
        from cowshed.state import drivers

        rows = [drivers.get(self.reader, name) for name in drivers.names(self.reader)]
        return {row.name: row.options for row in rows if row is not None}

    def driver_name(self) -> str:
        choice = selection.said(self.settings, self.stored_driver())
        if choice is None:
            from cowshed.layers import host

            choice = selection.choose(self.settings, "", host.make())
        why = next(step for step in choice.steps if step.kind == "chosen")
        log.info(f"driver {choice.name}: {why.source} {why.outcome}")
        return choice.name

    def layers(self, name: str = "") -> Layers:
        """The layers of a driver, by default the selected one."""
        name = name or self.driver_name()
        if name not in self._layers:
            self._layers[name] = self._open(self.store, name)
        return self._layers[name]

    def _open(self, store: Store, name: str) -> Layers:
        from cowshed.layers.driver import open_driver
        from cowshed.layers.layers import Layers

        settings = self.settings
        news = self._differs() if name == settings.driver and store.writable else None
        try:
            layers = Layers(store, name, open_driver(store, name, settings.options_of(name)))
            if news is not None:
                log.warn(f"{news[0]}: {news[1]}")
            return layers
        except NotFound as error:
            if name != settings.driver:
                raise
            stored = self.stored_driver()
            other = f"; the store has its layers in {stored}: --driver {stored}" if stored not in ("", name) else ""
            raise NotFound(f"{error} ({settings.driver_from} says so)", remedy=f"{error.remedy}{other}") from None
        except BadOption as error:
            who = settings.who_said(name, error.option)
            if not who:
                raise
            from cowshed.config import lines

            who = lines.pointed(who, ("storage", "drivers", name, error.option))
            raise BadOption(f"{error} ({who} says so)", option=error.option, remedy=error.remedy) from None

    def _differs(self) -> tuple[str, str] | None:
        """What is to be told when a configuration brings a driver into a store that has its layers in another, which is
        seldom meant."""
        from cowshed.state import drivers

        if self.settings.driver_from == selection.BY_FLAG or drivers.get(self.reader, self.settings.driver) is not None:
            return None
        return selection.disagreement(self.settings, self.stored_driver())

    def look(self, name: str) -> Layers:
        """The layers of a driver that the store has been used with, to be looked at: the store is open for reading, and
        nothing that dead commands left is repaired. Raises what `layers` does."""
        if self._store is not None:
            return self.layers(name)  # one opening for both
        if name not in self._looked_at:
            self._looked_at[name] = self._open(self.reader, name)
        return self._looked_at[name]

    def close_layers(self, name: str) -> None:
        """Close a driver whose store is about to be destroyed."""
        layers = self._layers.pop(name, None)
        if layers is not None:
            layers.driver.close()

    def image(self, text: str) -> ImageRow:
        """By name, digest or prefix of the id. NotFound."""
        from cowshed.errors import BadUsage
        from cowshed.image import reference
        from cowshed.state import images

        digits = text.removeprefix("sha256:")
        try:
            parsed = reference.parse(text)
        except BadUsage:
            parsed = None
        if parsed is not None:
            row = images.by_name(self.reader, parsed.name)
            if row is None and parsed.digest:
                row = images.by_digest(self.reader, parsed.digest)
            if row is not None:
                return row
        if len(digits) >= 4 and all(c in "0123456789abcdef" for c in digits):
            return images.by_id(self.reader, text)
        raise NotFound(f"no such image: {text}", remedy="cowshed images lists them; cowshed pull brings one")

    def gate(self) -> Gate | None:
        """What images have to pass before they are brought or used; None if there is no policy, which costs a look for
        its file, or it accepts everything. ConfigError if it cannot be understood."""
        path = self.settings.policy_file
        if not path:
            return None
        from cowshed.trust import policy

        there = policy.read(path)
        if there.accepts_all:
            return None
        from cowshed.trust.gate import Gate

        return Gate(there)

    def place(self, row: ContainerRow) -> str:
        """The run directory of a container."""
        return f"{self.reader.run}/c/{row.id[:32]}"

    def folder(self, row: ContainerRow) -> str:
        """What is kept of a container beside its layer: config.json, log, hostname, hosts, resolv.conf."""
        return f"{self.reader.root}/containers/{row.id}"

    def make_place(self, row: ContainerRow) -> str:
        path = f"{self.store.run_directory()}/c/{row.id[:32]}"
        os.makedirs(path, mode=0o700, exist_ok=True)
        return path
