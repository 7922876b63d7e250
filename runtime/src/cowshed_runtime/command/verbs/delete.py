"""delete: take a container away."""

from __future__ import annotations

from cowshed_runtime.command import ending, state
from cowshed_runtime.command.errors import CommandError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from cowshed_runtime.command.parser import Values


def delete(flags: Values, said: Values) -> int:
    folder, force = state.root(flags), bool(said.force)
    if not said.regex:
        _delete(folder, said["operands"][0], force=force)
        return 0
    import re

    try:
        pattern = re.compile(said["operands"][0])
    except re.error as error:
        raise CommandError(f"{said['operands'][0]!r} is no regular expression: {error}") from None
    for name in state.names(folder):
        if pattern.search(name):
            _delete(folder, name, force=force)
    return 0


def _delete(folder: str, name: str, *, force: bool) -> None:
    try:
        container = state.load(folder, name, lock=True)
    except state.Unknown:
        if force:
            return
        raise
    status = container.status(mine=True)
    if status in ("running", "paused") and not force:
        raise CommandError(f"cannot delete container {name} that is not stopped: {status}")
    if status != "stopped":
        ending.kill(container)
    ending.destroy(container, container.config())
    container.close()
