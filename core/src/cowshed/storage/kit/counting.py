"""How often a driver and what it does outside its root were called, how long that took, and how often it failed.

    counter = Counter()
    driver = operations(plugin.open(root, options, Counted(EngineHost(), counter), store=store), "name", counter)
    …
    counter.sums.rows()

Counting costs two microseconds for each call: the engine counts always. What was given and what came back is for
`cowshed.storage.kit.tracing`.
"""

from __future__ import annotations

import os
from _thread import allocate_lock
from time import monotonic

from cowshed.storage import api

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Sequence
    from contextlib import AbstractContextManager
    from typing import Any, Protocol, Self, TypeVar

    T = TypeVar("T")

    class Told(Protocol):
        """What is told of each call: `Counter`, or a `Trace`."""

        sums: Sums

        def doing(self, kind: str, name: str, **given: Any) -> AbstractContextManager[object]: ...


class Sums:
    """How often each thing was done, how long it took in all and at most, and how often it failed."""

    def __init__(self) -> None:
        self._rows: dict[tuple[str, str], list[float]] = {}
        self._lock = allocate_lock()

    def add(self, kind: str, name: str, seconds: float, *, failed: bool) -> None:
        with self._lock:
            row = self._rows.setdefault((kind, name), [0, 0.0, 0.0, 0])
            row[0] += 1
            row[1] += seconds
            row[2] = max(row[2], seconds)
            row[3] += failed

    def more(self, kind: str, name: str, seconds: float, whole: float, *, failed: bool) -> None:
        """Something that has been counted goes on for so long, whole with what it took before, and may fail then."""
        with self._lock:
            row = self._rows[kind, name]
            row[1] += seconds
            row[2] = max(row[2], whole)
            row[3] += failed

    def rows(self) -> list[dict[str, Any]]:
        """The longest first."""
        rows = sorted(self._rows.items(), key=lambda row: (-row[1][1], row[0]))
        return [
            {
                "kind": kind, "name": name, "count": int(count), "seconds": round(total, 6),
                "longest": round(longest, 6), "failed": int(failed),
            }
            for (kind, name), (count, total, longest, failed) in rows
        ]  # fmt: skip


class Counter:
    """Sums of what is done in its blocks."""

    def __init__(self) -> None:
        self.sums = Sums()

    def doing(self, kind: str, name: str, **given: Any) -> Timed:
        """`with counter.doing(…):` one thing that is counted; it failed if the block raises."""
        return Timed(self.sums, kind, name)


class Timed:
    """See `Counter.doing`."""

    def __init__(self, sums: Sums, kind: str, name: str) -> None:
        self._of = sums, kind, name

    def __enter__(self) -> Self:
        self._since = monotonic()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        sums, what, name = self._of
        sums.add(what, name, monotonic() - self._since, failed=kind is not None)


class Counted:
    """A `Host` that lets another do all, and counts it. Of a mount only its beginning is timed."""

    def __init__(self, host: api.Host, counter: Counter) -> None:
        self._host, self._counter = host, counter

    def run(
        self,
        argv: Sequence[str],
        *,
        timeout: float,
        ok: Collection[int] = (0,),
        mounts: Sequence[tuple[api.MountPlan, str]] = (),
    ) -> api.CompletedRun:
        with self._counter.doing("run", os.path.basename(argv[0])):
            return self._host.run(argv, timeout=timeout, ok=ok, mounts=mounts)

    def call(self, name: str, function: Callable[..., T], *arguments: object, changes: bool = True) -> T:
        with self._counter.doing("call", name):
            return self._host.call(name, function, *arguments, changes=changes)

    def library(self, name: str, load: Callable[[], T]) -> T:
        return Watched(self, name, load())  # type: ignore[return-value]

    def mounted(self, plan: api.MountPlan) -> AbstractContextManager[api.MountedTree]:
        return _Mounted(self._host.mounted(plan), self._counter, last(plan))

    def sync(self, fd: int) -> None:
        with self._counter.doing("sync", "syncfs"):
            self._host.sync(fd)

    def step(self, name: str) -> None:
        self._host.step(name)

    def progress(self, text: str, done: int, total: int | None) -> None:
        self._host.progress(text, done, total)


class _Mounted:
    def __init__(self, context: AbstractContextManager[api.MountedTree], counter: Counter, name: str) -> None:
        self._context, self._counter, self._name = context, counter, name

    def __enter__(self) -> api.MountedTree:
        with self._counter.doing("mount", self._name):
            return self._context.__enter__()

    def __exit__(self, *error: Any) -> None:
        self._context.__exit__(*error)


def last(plan: api.MountPlan) -> str:
    """What a plan's mount is called: its file system, or the kind of its last step."""
    step = plan.steps[-1]
    return step.fstype if isinstance(step, api.FileSystem) else type(step).__name__.lower()


class Watched:
    """An object each of whose methods is a call of the host; what else it has is asked of it by one."""

    def __init__(self, host: api.Host, name: str, thing: Any) -> None:
        self._of = host, name, thing

    def __getattr__(self, attribute: str) -> Any:
        host, name, thing = self._of
        value, whole = getattr(thing, attribute), f"{name}.{attribute}"
        if not callable(value):
            return host.call(whole, lambda: value, changes=False)

        def call(*arguments: object, **named: object) -> Any:
            if not named:
                return host.call(whole, value, *arguments, changes=False)
            return host.call(whole, lambda *_: value(*arguments, **named), *arguments, named, changes=False)

        return call


def operations(driver: T, name: str, told: Told) -> T:
    """The driver, each of whose calls is told with kind "operation" and the name NAME.CALL."""
    return _Operations(driver, name, told)  # type: ignore[return-value]


class _Operations:
    def __init__(self, driver: Any, name: str, told: Told) -> None:
        self._of = driver, name, told

    def __getattr__(self, attribute: str) -> Any:
        driver, name, told = self._of
        value = getattr(driver, attribute)
        if attribute.startswith("_") or not callable(value):
            return value

        def operation(*words: Any, **named: Any) -> Any:
            layer = next((word.id for word in words if isinstance(word, api.Layer)), "")
            with told.doing("operation", f"{name}.{attribute}", layer=layer):
                result = value(*words, **named)
            return _Items(result, f"{name}.{attribute}", told) if hasattr(result, "__next__") else result

        return operation


class _Items:
    """What a call gives one by one: the time that each takes counts as the call's."""

    def __init__(self, items: Iterator[Any], name: str, told: Told) -> None:
        self._items, self._name, self._told, self._whole = items, name, told, 0.0

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        since, failed = monotonic(), False
        try:
            return next(self._items)
        except StopIteration:
            raise
        except BaseException:
            failed = True
            raise
        finally:
            seconds = monotonic() - since
            self._whole += seconds
            self._told.sums.more("operation", self._name, seconds, self._whole, failed=failed)
