"""What a server does by itself from time to time: collecting garbage, checking what it has. The log tells it."""

from __future__ import annotations

import threading

from cowshed.check.findings import NOTE
from cowshed.registry.server import garbage, scrub

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from cowshed.registry.server.journal import Journal
    from cowshed.registry.server.store import Store


class Chores:
    """Works that come again. `stop` lets none begin any more; one that runs may end with the process at any moment."""

    def __init__(self, journal: Journal) -> None:
        self._journal = journal
        self._over = threading.Event()

    def every(self, seconds: float, what: str, work: Callable[[], None]) -> threading.Thread:
        """Do it so many seconds after the last time; that it fails is told, and no reason to stop."""

        def run() -> None:
            while not self._over.wait(seconds):
                try:
                    work()
                except Exception as error:
                    self._journal.failure(f"{what}: {type(error).__name__}: {error}")

        thread = threading.Thread(target=run, daemon=True)
        thread.start()
        return thread

    def stop(self) -> None:
        self._over.set()


def collect(store: Store, journal: Journal, *, grace: float, untagged: bool) -> None:
    """`garbage.collect`. OSError."""
    done = garbage.collect(store, grace=grace, untagged=untagged)
    for why in done.unreadable:
        journal.failure(f"garbage collection: {why}: nothing of this repository was removed")
    journal.event(
        "collected", manifests=done.manifests, links=done.links, uploads=done.uploads, blobs=done.blobs,
        freed=done.freed,
    )  # fmt: skip


def check(store: Store, journal: Journal, *, rate: int) -> None:
    """`scrub.check`, mending. OSError."""
    findings = mended = 0
    for finding, outcome in scrub.check(store, repair=True, rate=rate):
        if finding.severity == NOTE:
            continue
        findings, mended = findings + 1, mended + (outcome == scrub.DONE)
        journal.failure(f"check: {finding.line}" + (f": {outcome}" if outcome else ""))
    journal.event("checked", findings=findings, repaired=mended)
