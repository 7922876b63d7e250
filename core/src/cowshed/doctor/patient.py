"""What the doctor looks at: this host, the configuration, and a store, as far as each can be read. Nothing is changed.

Probes of drivers make and remove a trial where the store lies, and a driver that keeps devices sets them up when it is
opened, as for any other command.
"""

from __future__ import annotations

import os

from cowshed.config import selection, settings
from cowshed.config.whole import Whole
from cowshed.engine import Engine
from cowshed.errors import ConfigError, CowshedError, NoSpace, StoreError
from cowshed.layers.host import make as make_host
from cowshed.state import drivers, store
from cowshed.state.schema import STEPS
from cowshed.storage.errors import StorageError
from cowshed.storage.kit.places import nearest_directory
from cowshed.storage.record import Enum, record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

    from cowshed.config.selection import Explanation
    from cowshed.config.settings import Settings
    from cowshed.layers.layers import Layers
    from cowshed.state.store import Store


class Severity(Enum):
    ERROR = "error"  # something does not work now
    WARNING = "warning"  # something will not work, or is lost or slow
    NOTE = "note"  # a fact, or what could be better


@record(frozen=True)
class Finding:
    """One thing that was found. Each text is one line."""

    severity: Severity
    code: str  # stable, CHECK.WHAT
    text: str
    consequence: str = ""
    remedy: str = ""


class Patient:
    """flags, environ: as `settings.load` takes them."""

    def __init__(self, flags: Mapping[str, Any], environ: Mapping[str, str]) -> None:
        self.settings: Settings | None = None
        self.place_error: ConfigError | None = None  # where the store would be cannot be told
        try:
            self.settings = settings.load(flags, environ)
        except ConfigError:  # which `whole` tells: the rest is looked at as if there were no files
            try:
                self.settings = settings.load({**flags, "config": os.devnull, "driver_option": ()}, environ)
            except ConfigError as error:
                self.place_error = error
        self.store_error: CowshedError | StorageError | OSError | None = None
        self.store = self._open(Engine(self.settings)) if self.settings is not None else None
        if self.store is None:
            self.whole = Whole(flags, environ)
        else:
            self.whole = Whole(flags, environ, self.engine.kept_options(), self.engine.stored_driver())
        self.host = make_host()
        self.full = False  # so that probes, which make something, would only say that they cannot
        self._explanation: Explanation | None = None

    @property
    def root(self) -> str:
        assert self.settings is not None
        return self.settings.root

    @property
    def place(self) -> str:
        """Where the store is, or would be made."""
        return nearest_directory(self.root)

    def _open(self, engine: Engine) -> Store | None:
        """Open the store if there is one that needs no migration: the doctor makes none and migrates none."""
        self.engine = engine
        path = f"{self.root}/db.sqlite"
        if not os.path.exists(path):
            return None
        try:
            try:
                db = store.connect(path, write=False)
            except NoSpace:
                return engine.reader  # which reads a copy
            try:
                version = store.version_of(db, self.root)
            finally:
                db.close()
            if version < len(STEPS):
                raise StoreError(
                    f"the store at {self.root} has schema {version}, older than {len(STEPS)}, and was not looked at",
                    remedy="any other command migrates it: cowshed ps",
                )
            return engine.reader
        except (CowshedError, StorageError, OSError) as error:
            self.store_error = error
            return None

    def used(self) -> list[str]:
        """The drivers that the store has been used with."""
        return drivers.names(self.store) if self.store is not None else []

    def layers(self, name: str) -> Layers:
        """Raises what `Engine.look` does."""
        return self.engine.look(name)

    def explanation(self) -> Explanation:
        """The choice of a driver and every driver's probe, asked once."""
        assert self.settings is not None
        if self._explanation is None:
            stored, kept = ("", {}) if self.store is None else (self.engine.stored_driver(), self.engine.kept_options())
            self._explanation = selection.explain(self.settings, stored, self.host, kept)
        return self._explanation
