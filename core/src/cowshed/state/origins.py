"""Where images came from: the names of registries that they were pulled by, with the signatures that they came with, so
that a policy can be held against them at any time without asking anybody. An image without an origin is a local one."""

from __future__ import annotations

from cowshed.storage.record import record
from cowshed_runtime.fastjson import dumps, loads

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from cowshed.state.store import Store, Transaction


@record(frozen=True)
class OriginRow:
    name: str  # canonical
    digest: str  # of what the name stood for: the index, if there was one
    manifest: str  # the digest of the image's manifest
    evidence: list[list[str]]  # `cowshed.trust.signature.pack`


def write(tx: Transaction, image_id: str, origin: OriginRow) -> None:
    """A name that the image was pulled by. Signatures of the same manifest that are known stay if none came."""
    tx.execute(
        "insert into origins values (?, ?, ?, ?, ?) on conflict (image, name) do update set "
        "evidence = case when excluded.evidence = '[]' and excluded.digest = digest and excluded.manifest = manifest "
        "then evidence else excluded.evidence end, digest = excluded.digest, manifest = excluded.manifest",
        image_id, origin.name, origin.digest, origin.manifest, dumps(origin.evidence),
    )  # fmt: skip
    tx.record("images", image_id)


def of(store: Store, image_id: str) -> list[OriginRow]:
    rows = store.query("select name, digest, manifest, evidence from origins where image = ? order by name", image_id)
    return [OriginRow(name, digest, manifest, loads(evidence)) for name, digest, manifest, evidence in rows]


def as_record(known: list[OriginRow]) -> list[list[Any]]:
    """For the image's record."""
    return [[each.name, each.digest, each.manifest, each.evidence] for each in known]


def restore(tx: Transaction, image_id: str, said: Any) -> None:
    """Write what a record has of an image that has no origins. ValueError, TypeError if it is damaged."""
    for name, digest, manifest, evidence in said or ():
        write(tx, image_id, OriginRow(str(name), str(digest), str(manifest), list(evidence)))
