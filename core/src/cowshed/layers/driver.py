"""Opening a driver in a store: made on first use, then only opened, and only with the identity and options it was made
with."""

from __future__ import annotations

from cowshed.layers.host import EngineHost
from cowshed.storage import options, registry
from cowshed.storage.errors import StorageError
from cowshed_linux import locks
from cowshed_runtime.fastjson import dumps, loads

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

    from cowshed.state.store import Store
    from cowshed.storage import api


def open_driver(store: Store, name: str, wanted: Mapping[str, str | int | bool]) -> api.Driver:
    """The driver called name, open on STORE/drivers/name.

    Raises NotFound (not installed), StorageError (WrongStore, BadOption, …) as the driver says.
    """
    rows = store.query("select store, options, remembered from drivers where name = ?", name)
    kept = registry.Remembered(**loads(rows[0][2])) if rows else None
    plugin, found = registry.load(name, kept)
    root = f"{store.root}/drivers/{name}"
    chosen = options.check(plugin, wanted)
    host = EngineHost()
    if rows:
        options.compare(plugin, loads(rows[0][1]), wanted, chosen)
        if found != kept and store.writable:
            with store.transaction() as tx:
                tx.execute("update drivers set remembered = ? where name = ?", dumps(registry.as_dict(found)), name)
        return plugin.open(root, chosen, host, store=rows[0][0])
    report = plugin.probe(root, chosen, host)
    if report.capabilities is None:
        reason = report.reasons[0]
        raise StorageError(f"driver {name} cannot be used here: {reason.text}", remedy=reason.remedy)
    fd = store.locks.file(f"driver.{name}")
    locks.lock_file(fd)
    try:
        identity = plugin.init(root, chosen, host)
        with store.transaction() as tx:
            tx.execute(
                "insert or ignore into drivers values (?, ?, ?, ?)",
                name, identity, dumps(options.fixed(plugin, chosen)), dumps(registry.as_dict(found)),
            )  # fmt: skip
    finally:
        import fcntl

        fcntl.flock(fd, fcntl.LOCK_UN)
    return plugin.open(root, chosen, host, store=identity)
