"""The signatures that a registry has of an image: under the tag that is made of its digest (sha256-HEX.sig), and among
its referrers. Whatever is found is only evidence: what it is worth is judged elsewhere, so nothing here has to be
believed. There is a limit to all: a registry that hides a signature among thousands has not shown it."""

from __future__ import annotations

from cowshed import digests as hashing
from cowshed.errors import CowshedError, ImageError
from cowshed.image import manifest as manifests
from cowshed.registry.place import Missing
from cowshed.registry.referrers import EMPTY, type_of
from cowshed.trust.signature import (
    BUNDLE,
    BUNDLE_TYPE,
    SIMPLE,
    SIMPLE_SIGNATURE,
    SIMPLE_TYPE,
    BadSignature,
    Evidence,
    decoded,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from cowshed.registry.client import Client

_MOST = 64  # signatures of one kind of one digest
_LARGEST = {SIMPLE_TYPE: 64 << 10, BUNDLE_TYPE: 256 << 10}  # bytes of a blob
_IN_ALL = 1 << 20  # bytes that are kept of an image
_TAG = 128  # characters


def gather(client: Client, digests: Sequence[str]) -> tuple[tuple[Evidence, ...], str]:
    """(what there is for any of the digests, what went wrong while it was looked for: "" for nothing)."""
    found: dict[Evidence, None] = {}
    trouble: list[str] = []
    left = _IN_ALL
    for digest in dict.fromkeys(digests):
        for look in (_tagged, _referring):
            try:
                for each in look(client, digest, trouble):
                    left -= len(each.body) + len(each.signature)
                    if left < 0:
                        return tuple(found), "there are too many signatures"
                    found[each] = None
            except CowshedError as error:
                trouble.append(str(error))
    return tuple(found), trouble[0] if trouble else ""


def _tagged(client: Client, digest: str, trouble: list[str]) -> Iterator[Evidence]:
    tag = f"{digest.replace(':', '-')}.sig"
    if len(tag) > _TAG:
        return
    try:
        data, _ = client.manifest(tag)
    except Missing:
        return
    yield from _within(client, data, trouble)


def _referring(client: Client, digest: str, trouble: list[str]) -> Iterator[Evidence]:
    """An index may call a bundle by the type of its empty configuration, as cosign does: then its manifest is asked."""
    count = 0
    for entry in client.referrers(digest):
        if entry.get("artifactType") not in (None, "", EMPTY, BUNDLE_TYPE):
            continue
        count += 1
        if count > _MOST:
            return
        try:
            named = manifests.descriptor(entry, "a referrer")
            data = _verified(client.manifest(named.digest)[0], named.digest)
            if type_of(data) in (BUNDLE_TYPE, EMPTY):
                yield from _within(client, data, trouble)
        except CowshedError as error:
            trouble.append(str(error))


def _within(client: Client, data: bytes, trouble: list[str]) -> Iterator[Evidence]:
    """The signatures that a manifest has as its layers."""
    listed = manifests.document(data, "the list of signatures").get("layers")
    for layer in listed[:_MOST] if isinstance(listed, list) else ():
        try:
            blob = manifests.descriptor(layer, "a signature")
            if blob.size > _LARGEST.get(blob.media_type, -1):
                continue
            body = _verified(b"".join(client.blob(blob)), blob.digest)
            if blob.media_type == BUNDLE_TYPE:
                yield Evidence(BUNDLE, body)
            else:
                annotations = layer.get("annotations")
                said = annotations.get(SIMPLE_SIGNATURE) if isinstance(annotations, dict) else None
                yield Evidence(SIMPLE, body, decoded(said))
        except BadSignature as error:
            trouble.append(f"a signature {error}")
        except CowshedError as error:
            trouble.append(str(error))


def _verified(data: bytes, digest: str) -> bytes:
    algorithm, _, wanted = digest.partition(":")
    if hashing.new(algorithm, data).hexdigest() != wanted:
        raise ImageError(f"what the registry sends as the signature {digest[:19]} is something else")
    return data
