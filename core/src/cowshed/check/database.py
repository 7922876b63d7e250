"""The database against itself: sound, whole references, and the tables that follow from others."""

from __future__ import annotations

from cowshed import digests
from cowshed.check.files import REBUILD
from cowshed.check.findings import WARNING, Finding
from cowshed.errors import ImageError
from cowshed.image.reference import DIGITS
from cowshed.state import images, records
from cowshed_runtime.fastjson import loads

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from cowshed.state.rows import ImageRow
    from cowshed.state.store import Store

_NO_IMAGE = "image not in (select id from images)"
# Tables whose rows say nothing without the row that they name, and which of them name none. A row of another table may
# be the last trace of something.
DEPENDENT = {
    "tags": _NO_IMAGE,
    "chains": _NO_IMAGE,
    "origins": _NO_IMAGE,
    "volume_users": "volume not in (select name from volumes) or container not in (select number from containers)",
    "journal": "number not in (select number from layers)",
}


def look(store: Store, *, deep: bool) -> Iterator[Finding]:
    # Not quick_check: SQLite 3.40 takes a primary key in another order than its columns for a NULL in them.
    for (said,) in store.query("pragma integrity_check") if deep else ():
        if said != "ok":
            yield Finding("database.damaged", "db.sqlite", f"database: {said}", remedy=REBUILD)
    for table, row, parent, _ in store.query("pragma foreign_key_check"):
        text = f"database: row {row} of {table} names a row of {parent} that is not there"
        if table in DEPENDENT:
            yield Finding("database.reference", table, text, repair="delete it", data={"table": table})
        elif (table, parent) == ("containers", "images"):
            yield Finding(
                "database.reference", table, text, WARNING, "let the container go on without an image",
                data={"table": table},
            )  # fmt: skip
        elif (table, parent) != ("layers", "layers") or not _has_record(store, row):
            yield Finding("database.reference", table, text, remedy=REBUILD)
    yield from _counters(store)


def _has_record(store: Store, number: int) -> bool:
    """Whether the layer that this one stands on has only lost its row, which the look at the drivers tells."""
    found = store.query("select parent from layers where number = ?", number)
    parent = found[0][0] if found else None
    said = (records.read(records.path(store.root, "layers", id_)) for id_ in records.there(store.root, "layers"))
    return any(value is not None and value.get("number") == parent for value in said)


def look_at_images(store: Store) -> Iterator[Finding]:
    """Each image against its own digests, and the tables that follow from it."""
    for image, _ in images.list_all(store):
        yield from _image(store, image)


def _counters(store: Store) -> Iterator[Finding]:
    noted, beyond = store.noted_numbers()
    given = int(store.value("given") or 0)
    if noted > given:
        text = (
            f"the database is older than what lies beside it: {noted - given} layers were made since, whose numbers it "
            "would give away again"
        )
        yield Finding(
            "database.old", "db.sqlite", text, WARNING, "raise its counters", data={"given": noted, "next": beyond}
        )


def _image(store: Store, image: ImageRow) -> Iterator[Finding]:
    short = image.id[7:19]
    wrong = wrong_with(image)
    if wrong:
        yield Finding(
            "image.damaged", image.id, f"image {short}: {wrong}", repair="take it from its record, or from its registry"
        )
        return
    listed = {row[0] for row in store.query("select chain_id from chains where image = ?", image.id)}
    named = {row[0] for row in store.query("select digest from image_blobs where image = ?", image.id)}
    top = store.query("select top_chain from images where id = ?", image.id)
    if not top:
        return  # it was removed meanwhile
    if (
        listed != {*image.chain_ids}
        or named != {blob[0] for blob in image.blobs}
        or top[0][0] != (image.chain_ids[-1] if image.chain_ids else "")
    ):
        text = f"image {short}: the tables of what it stands on do not follow from it"
        yield Finding("image.tables", image.id, text, WARNING, "write them again")


def wrong_with(image: ImageRow) -> str:
    """What in the row of an image contradicts the digests that name its parts; "" if nothing does."""
    from cowshed.image import config as configs
    from cowshed.image import manifest as manifests

    if _digest(image.config, image.id) != image.id:
        return "its configuration does not have its digest"
    if _digest(image.manifest, image.manifest_digest) != image.manifest_digest:
        return "its manifest does not have its digest"
    try:
        parsed = manifests.parse_manifest(manifests.document(image.manifest, "its manifest"))
        diff_ids = configs.check(manifests.document(image.config, "its configuration"), len(parsed.layers))
    except ImageError as error:
        return str(error)
    if parsed.config.digest != image.id:
        return "its manifest is that of another image"
    if diff_ids != image.diff_ids or tuple((d.digest, d.media_type, d.size) for d in parsed.layers) != image.blobs:
        return "its lists of layers do not follow from its manifest and configuration"
    return ""


def _digest(data: bytes, wanted: str) -> str:
    algorithm = wanted.partition(":")[0]
    if algorithm not in DIGITS:
        return ""
    return f"{algorithm}:{digests.new(algorithm, data).hexdigest()}"


def blobs_of(store: Store) -> dict[str, tuple[str, int]]:
    """Digest -> (id of an image that lists it, size) of every blob that some image needs."""
    found: dict[str, tuple[str, int]] = {}
    for id_, listed in store.query("select id, blobs from images"):
        for digest, _, size in loads(listed):
            found.setdefault(digest, (id_, size))
    return found
