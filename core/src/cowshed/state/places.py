"""Which repositories of which registries have a blob: what a pull and a push learn, for the mounts of later pushes.

Only a hint: a registry that has deleted the blob since takes it again as if it had never had it.
"""

from __future__ import annotations

import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

    from cowshed.state.store import Store

_MOST = 20_000  # rows
_OFFERED = 3  # repositories that a mount is tried from


def remember(store: Store, registry: str, repository: str, digests: Iterable[str]) -> None:
    """These blobs are in that repository."""
    known = {
        row[0]
        for row in store.query(
            "select digest from blob_places where registry = ? and repository = ?", registry, repository
        )
    }
    new = sorted(set(digests) - known)
    if not new:
        return
    now = time.time_ns()
    with store.transaction() as tx:
        for digest in new:
            tx.execute("insert or replace into blob_places values (?, ?, ?, ?)", digest, registry, repository, now)
        tx.execute(
            "delete from blob_places where seen <= (select seen from blob_places order by seen desc limit 1 offset ?)",
            _MOST,
        )


def mountable(store: Store, registry: str, repository: str, digest: str) -> list[str]:
    """Other repositories of a registry that may have a blob, those learnt last first."""
    return [
        row[0]
        for row in store.query(
            "select repository from blob_places where digest = ? and registry = ? and repository <> ? "
            "order by seen desc limit ?",
            digest, registry, repository, _OFFERED,
        )
    ]  # fmt: skip
