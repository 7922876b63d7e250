"""Images and their names in the store."""

from __future__ import annotations

import sys

from cowshed.errors import Ambiguous, NotFound
from cowshed.state.rows import ImageRow
from cowshed_runtime.fastjson import dumps, loads

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from cowshed.state.store import Store, Transaction

_COLUMNS = "id, manifest_digest, manifest, media_type, config, diff_ids, blobs, platform, size, created, pulled"
_PREFIXED = ", ".join(["images." + name for name in _COLUMNS.split(", ")])


def chain_ids(diff_ids: tuple[str, ...]) -> tuple[str, ...]:
    """The chain id of each layer: the digest of it together with all below (image-spec config.md, Layer ChainID)."""
    chains: list[str] = []
    for diff in diff_ids:
        chains.append(chain_id(chains[-1] if chains else "", diff))
    return tuple(chains)


def chain_id(below: str, diff: str) -> str:
    """That of one layer on another, whose chain id is below; "" if it is the lowest."""
    return "sha256:" + _sha256(f"{below} {diff}".encode()) if below else diff


def _sha256(data: bytes) -> str:
    """Python's own: hashlib brings OpenSSL, which costs 2 ms to load."""
    module = __import__("_sha2" if sys.version_info >= (3, 12) else "_sha256")
    return str(module.sha256(data).hexdigest())


def _row(values: tuple[Any, ...]) -> ImageRow:
    id_, digest, manifest, media_type, config, diff_ids, blobs, platform, size, created, pulled = values
    diffs = tuple(loads(diff_ids))
    blobs_ = tuple((b[0], b[1], b[2]) for b in loads(blobs))
    return ImageRow(
        id_, digest, manifest, media_type, config, diffs, chain_ids(diffs), blobs_, platform, size, created, pulled
    )


def insert(tx: Transaction, image: ImageRow) -> None:
    """Write an image; one that is there already gets the newer manifest and keeps everything else."""
    tx.execute(
        f"insert into images ({_COLUMNS}, top_chain) values (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?) "
        "on conflict (id) do update set "
        "manifest_digest = excluded.manifest_digest, manifest = excluded.manifest, blobs = excluded.blobs, "
        "media_type = excluded.media_type, size = excluded.size",
        image.id, image.manifest_digest, image.manifest, image.media_type, image.config, dumps(image.diff_ids),
        dumps(image.blobs), image.platform, image.size, image.created, image.pulled,
        image.chain_ids[-1] if image.chain_ids else "",
    )  # fmt: skip
    for chain in image.chain_ids:
        tx.execute("insert or ignore into chains values (?, ?)", image.id, chain)
    tx.execute("delete from image_blobs where image = ?", image.id)
    for digest in {blob[0] for blob in image.blobs}:
        tx.execute("insert into image_blobs values (?, ?)", digest, image.id)
        tx.execute("delete from loose_blobs where digest = ?", digest)
    tx.record("images", image.id)


def restore(tx: Transaction, image: ImageRow) -> None:
    """Write an image, and all that follows from it, whatever the database says of it now."""
    insert(tx, image)
    tx.execute(
        "update images set config = ?, diff_ids = ?, top_chain = ?, platform = ?, created = ? where id = ?",
        image.config, dumps(image.diff_ids), image.chain_ids[-1] if image.chain_ids else "", image.platform,
        image.created, image.id,
    )  # fmt: skip


def tag(tx: Transaction, name: str, image_id: str, digest: str = "") -> None:
    """Give a canonical name to an image, taking it from another that had it. digest: of what the name stands for where
    it comes from, if that is known; else it is what another name of the image stands for."""
    untag(tx, name)
    tx.record("images", image_id)
    for (known,) in () if digest else tx.execute("select max(digest) from tags where image = ?", image_id):
        digest = known or ""
    tx.execute("insert into tags (name, image, digest) values (?, ?, ?)", name, image_id, digest)


def untag(tx: Transaction, name: str) -> None:
    for (image_id,) in tx.execute("delete from tags where name = ? returning image", name):
        tx.record("images", image_id)


def delete(tx: Transaction, image_id: str) -> None:
    tx.execute("delete from tags where image = ?", image_id)
    tx.execute("delete from chains where image = ?", image_id)
    tx.execute("delete from image_blobs where image = ?", image_id)
    tx.execute("delete from origins where image = ?", image_id)
    tx.execute("delete from images where id = ?", image_id)
    tx.record("images", image_id)


def by_name(store: Store, name: str) -> ImageRow | None:
    rows = store.query(f"select {_PREFIXED} from tags join images on images.id = tags.image where tags.name = ?", name)
    return _row(rows[0]) if rows else None


def by_id(store: Store, id_: str) -> ImageRow:
    """By id or a prefix of one, with or without `sha256:`. NotFound, Ambiguous."""
    digits = id_.removeprefix("sha256:")
    rows = []
    if digits and all(c in "0123456789abcdef" for c in digits):
        low = "sha256:" + digits
        rows = store.query(f"select {_COLUMNS} from images where id >= ? and id < ?", low, low + "g")
    if not rows:
        raise NotFound(f"no such image: {id_}", remedy="cowshed images lists them")
    if len(rows) > 1:
        raise Ambiguous(f"{id_} fits {len(rows)} images", remedy="give more of the id")
    return _row(rows[0])


def exact(store: Store, id_: str) -> ImageRow | None:
    rows = store.query(f"select {_COLUMNS} from images where id = ?", id_)
    return _row(rows[0]) if rows else None


def by_digest(store: Store, digest: str) -> ImageRow | None:
    """By the digest of its manifest, or of the index that it was chosen from."""
    rows = store.query(f"select {_COLUMNS} from images where manifest_digest = ?", digest) or store.query(
        f"select {_PREFIXED} from tags join images on images.id = tags.image "
        "where tags.digest = ? and tags.digest != ''",
        digest,
    )  # fmt: skip
    return _row(rows[0]) if rows else None


def digests(store: Store, image_id: str = "") -> dict[str, str]:
    """By canonical name, the digest of what it stood for where it comes from; names of which that is not known are left
    out. Of one image, or of all."""
    which = ("where image = ? and digest != ''", image_id) if image_id else ("where digest != ''",)
    return dict(store.query(f"select name, digest from tags {which[0]} order by name", *which[1:]))


def names(store: Store, image_id: str) -> list[str]:
    return [r[0] for r in store.query("select name from tags where image = ? order by name", image_id)]


def list_all(store: Store) -> list[tuple[ImageRow, list[str]]]:
    """Every image with its names, newest first."""
    tags: dict[str, list[str]] = {}
    for name, image in store.query("select name, image from tags order by name"):
        tags.setdefault(image, []).append(name)
    rows = store.query(f"select {_COLUMNS} from images order by created desc, id")
    return [(_row(row), tags.get(row[0], [])) for row in rows]


def unused_blobs(store: Store, digests: list[str]) -> list[str]:
    """Those of digests that no image lists any more."""
    return [d for d in digests if not store.query("select 1 from image_blobs where digest = ? limit 1", d)]
