"""Images of which the database has lost rows: what they need is not rubbish, though no row lists it."""

from __future__ import annotations

from cowshed.state import records
from cowshed_runtime.fastjson import loads

TYPE_CHECKING = False
if TYPE_CHECKING:
    from cowshed.state.store import Store


def is_whole(store: Store) -> bool:
    """Whether every image that rows name is there, and every record of an image without a row can be read: then what
    nobody lists is nobody's."""
    for named in ("image from tags", "image from chains", "image from image_blobs", "image_id from containers"):
        column = named.partition(" ")[0]
        if store.query(
            f"select {named} where {column} is not null and {column} not in (select id from images) limit 1"
        ):
            return False
    return all(_listed(store, name) is not None for name in _without_row(store))


def blobs(store: Store) -> set[str]:
    """Digests of the blobs that the images' own rows list, whatever the tables say that follow from them, and of those
    that the records of images without a row list."""
    found = {blob[0] for (listed,) in store.query("select blobs from images") for blob in loads(listed)}
    for name in _without_row(store):
        found.update(_listed(store, name) or ())
    return found


def _without_row(store: Store) -> list[str]:
    known = {id_[7:] for (id_,) in store.query("select id from images")}
    return [name for name in records.there(store.root, "images") if name not in known]


def _listed(store: Store, name: str) -> set[str] | None:
    """The layers' digests in the manifest that a record has; None if it cannot be read."""
    record = records.read(records.path(store.root, "images", name))
    try:
        manifest = loads(records.bytes_of((record or {}).get("manifest")))
        return {str(layer["digest"]) for layer in manifest["layers"]}
    except (ValueError, KeyError, TypeError):
        return None
