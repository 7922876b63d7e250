"""Documents by digest, of which the store knows the bytes: manifests of its images, and the indexes that names of its
images stand for, which are kept for this alone."""

from __future__ import annotations

import hashlib

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

    from cowshed.state.store import Store, Transaction


def write(tx: Transaction, root: str, found: Mapping[str, bytes]) -> None:
    """Keep the indexes that were gone through from `root`, the digest of what a name stands for, to an image. Those
    that no name stands for any more go."""
    known = {digest for (digest,) in tx.execute("select digest from indexes where root = ?", root)}
    new = [digest for digest in found if digest not in known]
    for digest in new:
        tx.execute("insert into indexes values (?, ?, ?)", digest, root, found[digest])
    if new:
        tx.execute("delete from indexes where root not in (select digest from tags)")


def document(store: Store, digest: str) -> tuple[bytes, str] | None:
    """(the bytes of a manifest or index that has the digest, its type if that was told apart from it); None if they are
    not here, or damaged."""
    rows = store.query(
        "select manifest, media_type from images where manifest_digest = ? "
        "union all select document, '' from indexes where digest = ? limit 1",
        digest, digest,
    )  # fmt: skip
    for data, kind in rows:
        if digest == "sha256:" + hashlib.sha256(data).hexdigest():
            return bytes(data), kind
    return None


def stood_for(store: Store, name: str) -> str:
    """The digest of what a name stood for when it was brought here, "" if nobody knows."""
    rows = store.query("select digest from tags where name = ?", name)
    return str(rows[0][0]) if rows else ""
