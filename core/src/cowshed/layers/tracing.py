"""`--trace FILE`: what this command lets drivers do and mounts for them, as JSON (`cowshed.storage.kit.tracing`)."""

from __future__ import annotations

from cowshed import log
from cowshed.errors import StoreError
from cowshed.storage.kit.counting import operations
from cowshed.storage.kit.tracing import Recorder, Trace, step_described

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from cowshed.storage import api


def begin(path: str, root: str) -> CommandTrace:
    """From now on in this process. StoreError if the file cannot be written."""
    log.trace = CommandTrace(path, root)
    return log.trace


class CommandTrace:
    """The trace of one command. StoreError if its file cannot be written."""

    def __init__(self, path: str, root: str) -> None:
        try:
            self._trace = Trace(path, root)
        except OSError as error:
            text = f"the trace cannot be written to {path}: {error.strerror}"
            raise StoreError(text, remedy="name another file, or - for standard error") from None

    def close(self) -> None:
        self._trace.close()

    def host(self, host: api.Host) -> api.Host:
        return Recorder(host, self._trace)

    def driver(self, name: str, driver: api.Driver) -> api.Driver:
        return operations(driver, name, self._trace)

    def mount(self, execute: Callable[[api.Mount, list[int]], int], step: api.Mount, done: list[int]) -> int:
        """Execute one step of a plan."""
        kind, fields = step_described(step, self._trace.root)
        name = fields.get("fstype") or kind.lower()
        with self._trace.doing("mount-step", name, step=fields):
            return execute(step, done)
