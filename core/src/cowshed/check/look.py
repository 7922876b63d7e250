"""The whole store against itself and against its back ends: every check in its order.

Read only: what is found is told. What commands are working on just now is left out: a finding is told if it is there at
two looks.
"""

from __future__ import annotations

from cowshed.check import blobs, contents, database, files, objects, places
from cowshed.check.findings import Finding, twice
from cowshed.check.memory import Memory
from cowshed.errors import Busy, NewerStore, NoSpace, StoreError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from cowshed.engine import Engine


def check(
    engine: Engine, *, deep: bool = False, resume: bool = False, told: Callable[[str], object] = lambda text: None
) -> Iterator[Finding]:
    """What does not fit, as it is found. With deep every blob and every layer is read and held against its digests, the
    database checked row by row, and drivers that check themselves read what is in their layers; told(text) is called
    as it goes. resume: leave out what a deep check that was interrupted has verified.

    Raises Busy, NewerStore, NoSpace; KeyboardInterrupt ends a deep check so that it can be resumed.
    """
    root = engine.settings.root
    first = list(files.look(root)) if engine.is_closed else twice(lambda: files.look(root, opened=True))
    yield from first
    if any(map(files.is_blocking, first)):
        return
    try:
        store = engine.store
    except (Busy, NewerStore, NoSpace):
        raise
    except StoreError as error:
        yield Finding("database.unreadable", files.DATABASE, f"database: {error}", remedy=files.REBUILD)
        return
    try:
        yield from twice(lambda: database.look(store, deep=deep))
        yield from twice(lambda: database.look_at_images(store))
        yield from objects.look(engine, deep=deep)
        yield from twice(lambda: blobs.look(store))
        yield from twice(lambda: places.look(engine))
    except StoreError as error:
        if isinstance(error, (Busy, NewerStore)):
            raise
        yield Finding("database.damaged", files.DATABASE, f"database: {error}", remedy=files.REBUILD)
        return
    if deep:
        memory = Memory(store, resume=resume)
        try:
            yield from blobs.verify(store, memory, told)
            yield from contents.verify(engine, memory, told)
        except BaseException:
            memory.save()
            raise
        memory.forget()
