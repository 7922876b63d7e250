"""Opening a driver in a store: made on first use, then only opened, and only with the identity and options it was made
with."""

from __future__ import annotations

from cowshed import log
from cowshed.errors import Busy, StoreError
from cowshed.layers import host as hosts
from cowshed.layers import metrics
from cowshed.state import drivers
from cowshed.state.rows import DriverRow
from cowshed.storage import options, registry
from cowshed.storage.api import Reason, Verdict
from cowshed.storage.errors import StorageError, ToolFailed, Unsupported
from cowshed.storage.kit.counting import operations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import TypeVar

    from cowshed.state.store import Store
    from cowshed.storage import api

    T = TypeVar("T")

_WAIT = 30.0  # seconds for another command to make the same driver's store


def open_driver(store: Store, name: str, wanted: Mapping[str, str | int | bool]) -> api.Driver:
    """The driver called name, open on STORE/drivers/name. Its store is made on the first use.

    Raises NotFound (not installed), StorageError (WrongStore, BadOption, …) as the driver says, Busy.
    """
    row = drivers.get(store, name)
    kept = registry.Remembered(**row.remembered) if row else None
    plugin, found = registry.load(name, kept)
    root = f"{store.root}/drivers/{name}"
    chosen = options.check(plugin, wanted)
    counter = metrics.counter(name)
    host = hosts.make(counter)
    if row is None:
        row = _first_use(store, plugin, root, chosen, host, registry.as_dict(found))
    elif found != kept and store.writable:
        with store.transaction() as tx:
            drivers.set_remembered(tx, name, registry.as_dict(found))
    options.compare(plugin, row.options, wanted, chosen)
    # Opening a store may set devices up, which two must not do at once.
    if not store.locks.exclude(f"driver.{name}", wait=_WAIT):
        raise Busy(f"the {name} store is being opened by another command", remedy="try again")
    try:
        driver = _own_errors(name, "open", lambda: plugin.open(root, chosen, host, store=row.store))  # type: ignore[arg-type]
        driver = operations(driver, name, counter)
        return driver if log.trace is None else log.trace.driver(name, driver)
    finally:
        store.locks.let_go(f"driver.{name}")


def _first_use(
    store: Store, plugin: api.DriverPlugin, root: str, chosen: api.Options, host: api.Host, remembered: dict[str, str]
) -> DriverRow:
    name = plugin.name
    report = _own_errors(name, "probe", lambda: plugin.probe(root, chosen, host))
    if report.capabilities is None or report.verdict is Verdict.UNUSABLE:
        reason = next((r for r in report.reasons if r.verdict is report.verdict), Reason("", "it does not say why"))
        raise Unsupported(f"driver {name} cannot be used here: {reason.text}", remedy=reason.remedy)
    if not store.writable:
        raise StoreError(f"the store at {store.root} has not used driver {name} yet and is open for reading only")
    if not store.locks.exclude(f"driver.{name}", wait=_WAIT):
        raise Busy(f"the {name} store is being made by another command", remedy="try again")
    try:
        identity = _own_errors(name, "init", lambda: plugin.init(root, chosen, host))
        with store.transaction() as tx:
            drivers.insert(tx, DriverRow(name, identity, options.fixed(plugin, chosen), remembered))
    finally:
        store.locks.let_go(f"driver.{name}")
    row = drivers.get(store, name)
    if row is None:
        raise StorageError(f"driver {name} was taken out of the store meanwhile", remedy="try again")
    return row


def _own_errors(name: str, call: str, do: Callable[[], T]) -> T:
    """What do() gives. An error that no driver may raise is a bug of the plug-in and told as one."""
    try:
        return do()
    except (StorageError, OSError):
        raise
    except Exception as error:
        raise ToolFailed(
            f"driver {name} has a bug: its {call} raised {type(error).__name__}: {error}",
            remedy="report it to its author, with what --debug shows; or choose another: --driver",
        ) from error
