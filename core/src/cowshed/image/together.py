"""Several transfers at once."""

from __future__ import annotations

import threading

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from typing import TypeVar

    T = TypeVar("T")

MOST = 4  # transfers at a time


def each(items: Iterable[T], work: Callable[[T], None], *, abort: Callable[[], None], name: str) -> None:
    """Do the work for every item, in order, a few at a time, in threads of that name; return when none works any more.

    The first error, an interrupt of the caller's among them, ends them all, and is raised: no further item is begun,
    and abort() is called, in any thread, to let those that are under way end soon.
    """
    _Each(items, work, abort).run(name)


class _Each:
    def __init__(self, items: Iterable[T], work: Callable[[T], None], abort: Callable[[], None]) -> None:
        self._queue, self._work, self._abort = list(items), work, abort
        self._guard = threading.Lock()
        self._error: BaseException | None = None

    def run(self, name: str) -> None:
        threads = [threading.Thread(target=self._all, name=name) for _ in range(min(MOST, len(self._queue)))]
        for thread in threads:
            thread.start()
        try:
            for thread in threads:
                thread.join()
        except BaseException as error:
            self._failed(error)
            for thread in threads:
                thread.join()
        if self._error is not None:
            raise self._error

    def _all(self) -> None:
        while True:
            with self._guard:
                if not self._queue or self._error is not None:
                    return
                item = self._queue.pop(0)
            try:
                self._work(item)
            except BaseException as error:
                self._failed(error)
                return

    def _failed(self, error: BaseException) -> None:
        with self._guard:
            if self._error is not None:
                return
            self._error = error
        self._abort()
