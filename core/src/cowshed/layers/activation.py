"""Layers that have to be set up before they can be mounted: activated, mounted, and at once deactivated.

From then on the mount alone holds the device, and the kernel takes it away with the last mount, whoever dies. Only a
process that is killed between the two calls leaves one behind. So meanwhile a file in the run directory says that it is
at it: neither outlives a reboot, and a database that had to be synced would cost more than the mount. One whose byte of
`activations` is free belongs to a dead process, and the layer is deactivated again by the next command that writes, and
before it is committed or removed.
"""

from __future__ import annotations

import os

from cowshed import log
from cowshed.errors import CowshedError, NoSpace, StoreError
from cowshed.layers.faults import step
from cowshed.state import layers as rows
from cowshed.storage import api
from cowshed.storage.errors import StorageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

    from cowshed.layers.layers import Layers
    from cowshed.state.store import Store

_PATIENCE = 60.0  # seconds for other processes that set the same layer up
_LITTLE = 1 << 20  # bytes: a pool that has not even these has no place for a file


class Reserved:
    """`with Reserved(store, driver, layer):` nobody else activates or deactivates the layer; at the end it is not
    active, but for what a mount holds. Busy, StorageError."""

    def __init__(self, store: Store, driver: api.ActivationDriver, layer: api.Layer) -> None:
        self._store, self._driver, self._layer = store, driver, layer

    def __enter__(self) -> None:
        store, layer = self._store, self._layer
        store.locks.take("activations", layer.number, wait=_PATIENCE, what=f"layer {layer.id[:12]}")
        try:
            _note(store, layer.number)
            step("activate.noted")
        except BaseException:
            store.locks.release("activations", layer.number)
            raise

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            step("deactivate.begin")
            self._driver.deactivate(self._layer)
            step("deactivate.done")
            _forget(self._store, self._layer.number)
        finally:
            self._store.locks.release("activations", self._layer.number)


def mount(
    store: Store, driver: api.ActivationDriver, layer: api.Layer, execute: Callable[[], int], *, read_only: bool
) -> int:
    """Activate a layer, execute its plan by execute(), deactivate it: the descriptor of the detached mount."""
    fd = -1
    try:
        with Reserved(store, driver, layer):
            driver.activate(layer, read_only=read_only)
            step("activate.done")
            fd = execute()
    except BaseException:
        if fd >= 0:
            os.close(fd)
        raise
    return fd


class WrittenBack:
    """`with WrittenBack(driver, layer, root):` what is written to a layer with a file system of its own, which is
    mounted at root. It goes with its mount, which writes back what is still in memory and tells nobody if there is no
    place for it (a thin pool that became full). So it is asked before. NoSpace, StoreError if something that was
    written is lost.
    """

    def __init__(self, driver: api.Driver, layer: api.Layer, root: int) -> None:
        self._driver, self._layer = driver, layer
        # syncfs(2) tells of errors only since its descriptor was opened; root may be of O_PATH
        self._fd = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=root)

    def __enter__(self) -> None:
        return

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        from cowshed_linux import files

        try:
            if kind is None:
                files.syncfs(self._fd)
        except OSError as problem:
            text = (
                f"what was written to layer {self._layer.id[:12]} cannot be stored: {os.strerror(problem.errno or 0)}"
            )
            if problem.errno in (28, 122) or _is_full(self._driver):  # ENOSPC, EDQUOT
                raise NoSpace(text, remedy="cowshed rmi, or make room in the pool") from None
            raise StoreError(text, remedy="see what the kernel says of the disk (dmesg)") from None
        finally:
            os.close(self._fd)


def _is_full(driver: api.Driver) -> bool:
    """A disk below with no space is an input/output error to those above it."""
    try:
        free = driver.health().data_free
    except (StorageError, OSError):
        return False  # then the error that there is says more
    return free is not None and free < _LITTLE


def recover(store: Store, layers: Callable[[str], Layers]) -> None:
    """Deactivate the layers over which a process was killed while it set them up; layers(name) opens a driver's. One
    that cannot be deactivated is left to the next command."""
    try:
        noted = [int(name) for name in os.listdir(_folder(store))]
    except FileNotFoundError:
        return
    for number in sorted(noted):
        row = rows.get(store, number)
        if row is None:
            _forget(store, number)  # it was deactivated before it was removed
            continue
        try:
            held = layers(row.driver)
            deactivate_left(store, held.driver, held.load(number))
        except (CowshedError, StorageError, OSError) as error:
            log.info(f"layer {row.id[:12]}, which a dead command left active, cannot be deactivated now: {error}")


def deactivate_left(store: Store, driver: api.Driver, layer: api.Layer) -> None:
    """Deactivate a layer over which a process was killed while it set it up. One that a living one is at is left."""
    if not api.has_activation(driver) or not os.path.exists(f"{_folder(store)}/{layer.number}"):
        return
    if store.locks.try_take("activations", layer.number):
        try:
            driver.deactivate(layer)
            _forget(store, layer.number)
        finally:
            store.locks.release("activations", layer.number)


def _folder(store: Store) -> str:
    return f"{store.run}/active"


def _note(store: Store, number: int) -> None:
    path, flags = f"{_folder(store)}/{number}", os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC
    try:
        fd = os.open(path, flags, 0o600)
    except FileNotFoundError:
        os.makedirs(_folder(store), mode=0o700, exist_ok=True)
        fd = os.open(path, flags, 0o600)
    os.close(fd)


def _forget(store: Store, number: int) -> None:
    try:
        os.unlink(f"{_folder(store)}/{number}")
    except FileNotFoundError:
        return
