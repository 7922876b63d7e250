"""Leases: blobs that a running command counts on before an image lists them.

A pull that finds a blob in place downloads it no more; so nobody may delete that blob until the image is written down.
A lease is a row per blob, with a byte of the lock file `leases` that its taker holds for life: when the taker dies the
byte is free and the lease is void.
"""

from __future__ import annotations

import os

from cowshed.errors import Busy
from cowshed.state import images

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from types import TracebackType

    from cowshed.state.store import Store

_WAIT = 60.0  # seconds for another command to delete blobs


class Lease:
    """`with Lease(store, digests):` nobody deletes these blobs meanwhile. Look whether they are there only inside.

    made: they are made here, so that nobody will ask for them again if this process dies: the next command deletes
    them then.
    """

    def __init__(self, store: Store, digests: Iterable[str], *, made: bool = False) -> None:
        self._store, self._digests, self._made = store, sorted(set(digests)), made

    def __enter__(self) -> Lease:
        store = self._store
        self._byte = 0
        while not self._byte or not store.locks.try_take("leases", self._byte):
            self._byte = int.from_bytes(os.urandom(5), "big")
        void = _void(store)
        if not store.locks.share("blobs", wait=_WAIT):
            raise Busy("blobs are being deleted by another command", remedy="try again")
        try:
            with store.transaction() as tx:
                for taker in void:
                    tx.execute("delete from leases where taker = ?", taker)
                for digest in self._digests:
                    tx.execute("insert into leases values (?, ?)", digest, self._byte)
                    if self._made:
                        tx.execute("insert or replace into loose_blobs values (?, 1)", digest)
        finally:
            store.locks.let_go("blobs")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            with self._store.transaction() as tx:
                tx.execute("delete from leases where taker = ?", self._byte)
        finally:
            self._store.locks.release("leases", self._byte)


def _takers(store: Store) -> list[int]:
    return [r[0] for r in store.query("select distinct taker from leases")]


def _alive(store: Store, taker: int) -> bool:
    return store.locks.mine("leases", taker) or store.locks.held("leases", taker)


def _void(store: Store) -> list[int]:
    return [taker for taker in _takers(store) if not _alive(store, taker)]


def leased(store: Store) -> set[str]:
    """Digests of the blobs that living commands count on."""
    alive = {taker for taker in _takers(store) if _alive(store, taker)}
    return {digest for digest, taker in store.query("select digest, taker from leases") if taker in alive}


def delete_unused(
    store: Store, remove: Callable[[str], None], digests: Iterable[str] | None = None, *, wait: float = _WAIT
) -> list[str]:
    """Call remove for each of these blobs that no image lists, not even one that has lost its rows, and no command
    counts on; those that were removed.

    Without digests: for the blobs that an image no longer lists or that a dead command counted on. Busy if another
    command takes or gives leases for longer than `wait` seconds.
    """
    if not store.locks.exclude("blobs", wait=wait):
        raise Busy("blobs are in use by another command", remedy="try again")
    try:
        void = _void(store)
        if void:
            with store.transaction() as tx:
                for taker in void:
                    tx.execute("delete from leases where taker = ?", taker)
        loose = [r[0] for r in store.query("select digest from loose_blobs")]
        kept = leased(store)
        if loose or digests is not None:
            from cowshed.state import lost

            kept |= lost.blobs(store)
        found = loose if digests is None else list(digests)
        gone = [digest for digest in images.unused_blobs(store, found) if digest not in kept]
        for digest in gone:
            remove(digest)
        if loose:
            with store.transaction() as tx:
                for digest in loose:
                    if digest not in kept:  # else its lease will say so again
                        tx.execute("delete from loose_blobs where digest = ?", digest)
        return gone
    finally:
        store.locks.let_go("blobs")
