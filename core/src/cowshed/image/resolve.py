"""From a name to an image: manifest, index, platform, configuration, each verified before it is believed."""

from __future__ import annotations

import hashlib
import time

from cowshed import digests
from cowshed.errors import ImageError, Tampered
from cowshed.image import config as configs
from cowshed.image import manifest as manifests
from cowshed.image import platform as platforms
from cowshed.state import images
from cowshed.state.rows import ImageRow
from cowshed.storage.record import record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from typing import Any, Protocol

    from cowshed.image.manifest import Descriptor, Manifest
    from cowshed.image.platform import Platform
    from cowshed.image.progress import Progress
    from cowshed.state.store import Store

    class Origin(Protocol):
        """Where an image comes from: a registry's repository, a layout, an archive."""

        def manifest(self, wanted: str) -> tuple[bytes, str]:
            """(bytes, what the origin says their type is) by digest, or by a tag where there are any."""

        def blob(self, blob: Descriptor, offset: int = 0) -> Iterable[bytes]:
            """The bytes of a blob, from offset on."""


_DEPTH = 4  # of indexes within indexes
_IMAGES = 1000  # that are pulled together


@record(frozen=True)
class Resolved:
    image: ImageRow
    manifest: Manifest
    digest: str  # of the first document: the index, if there is one
    indexes: Mapping[str, bytes] = {}  # by digest, those that lead to the image


def resolve(
    store: Store,
    origin: Origin,
    wanted: str,
    *,
    digest: str,
    platform: Platform | None,
    progress: Progress,
    size: int | None = None,
) -> Resolved:
    """The image behind `wanted` (a tag or digest) for a platform, by default this machine's.

    digest and size: what the first document must have, "" and None for any. Raises Tampered, ImageError, and what
    the origin raises.
    """
    best = platform or platforms.best()
    data, said = origin.manifest(wanted)
    if size is not None and len(data) != size:
        raise Tampered(f"the manifest has {len(data)} bytes, its index says {size}")
    if digest:
        verify(data, digest, "the manifest")
    first = digest or "sha256:" + hashlib.sha256(data).hexdigest()
    value = manifests.document(data, "the manifest")
    kind = manifests.media_type(value, said)
    indexes, here = {}, first
    for _ in range(_DEPTH):
        if kind not in manifests.INDEXES:
            break
        indexes[here] = data
        chosen = manifests.choose(value, best)
        here = chosen.digest
        data, value, kind = _entry(origin, chosen)
    else:
        raise ImageError(f"the image's indexes lie more than {_DEPTH} deep")
    parsed = manifests.parse_manifest(value)
    config = _config(store, origin, parsed.config)
    image = describe(data, kind, parsed, config)
    _fits(image, platform, progress)
    return Resolved(image, parsed, first, indexes)


def resolve_all(store: Store, origin: Origin, wanted: str, *, digest: str, progress: Progress) -> tuple[Resolved, ...]:
    """Every Linux image behind `wanted`: of all platforms of an index, and of the indexes in it, in their order.

    What is no such image (a list of contents, an image for another system) is told and left out. Raises as `resolve`
    does."""
    data, said = origin.manifest(wanted)
    if digest:
        verify(data, digest, "the manifest")
    first = digest or "sha256:" + hashlib.sha256(data).hexdigest()
    value = manifests.document(data, "the manifest")
    found: dict[str, Resolved] = {}
    seen: set[str] = set()
    indexes: dict[str, bytes] = {}

    def visit(digest: str, data: bytes, value: dict[str, Any], kind: str, depth: int) -> None:
        if kind not in manifests.INDEXES:
            parsed = manifests.parse_manifest(value)
            image = describe(data, kind, parsed, _config(store, origin, parsed.config))
            if not image.platform.startswith("linux/"):
                raise ImageError(f"it is for {image.platform}")
            found.setdefault(image.manifest_digest, Resolved(image, parsed, first, indexes))
            return
        indexes[digest] = data
        if depth == _DEPTH:
            raise ImageError(f"the image's indexes lie more than {_DEPTH} deep")
        for entry, _ in manifests.entries(value):
            if entry.digest in seen:
                continue
            if len(seen) == _IMAGES:
                raise ImageError(f"the image's indexes name more than {_IMAGES} manifests")
            seen.add(entry.digest)
            inner = _entry(origin, entry)
            if inner[2] in manifests.INDEXES:
                visit(entry.digest, *inner, depth + 1)
                continue
            try:
                visit(entry.digest, *inner, depth)
            except Tampered:
                raise
            except ImageError as error:
                progress.warn(f"{entry.digest[7:19]} is left out: {error}")

    visit(first, data, value, manifests.media_type(value, said), 0)
    if not found:
        raise ImageError("the index has no image that can be used here")
    return tuple(found.values())


def _entry(origin: Origin, chosen: Descriptor) -> tuple[bytes, dict[str, Any], str]:
    """(bytes, document, type) of what an index names, verified."""
    if chosen.size > manifests.LIMIT:
        raise ImageError(f"the manifest has {chosen.size} bytes; {manifests.LIMIT} are allowed")
    data, said = origin.manifest(chosen.digest)
    if len(data) != chosen.size:
        raise Tampered(f"the manifest has {len(data)} bytes, its index says {chosen.size}")
    verify(data, chosen.digest, "the manifest")
    value = manifests.document(data, "the manifest")
    return data, value, manifests.media_type(value, said)


def describe(manifest: bytes, media_type: str, parsed: Manifest, config: bytes) -> ImageRow:
    """The row of an image from its verified manifest and configuration. ImageError if they do not fit together."""
    value = manifests.document(config, "the image's configuration")
    diff_ids = configs.check(value, len(parsed.layers))
    return ImageRow(
        parsed.config.digest, "sha256:" + hashlib.sha256(manifest).hexdigest(), manifest, media_type, config, diff_ids,
        images.chain_ids(diff_ids), tuple((d.digest, d.media_type, d.size) for d in parsed.layers),
        str(configs.platform(value)), sum(d.size for d in parsed.layers), configs.created_ns(value.get("created")),
        time.time_ns(),
    )  # fmt: skip


def verify(data: bytes, digest: str, what: str) -> None:
    """Tampered unless data has the digest, which has been checked for its form."""
    algorithm, _, wanted = digest.partition(":")
    found = digests.new(algorithm, data).hexdigest()
    if found != wanted:
        raise Tampered(
            f"{what} does not have the digest {digest[:19]}… that names it, but {algorithm}:{found[:12]}…",
            remedy="somebody changed it on the way or in the registry",
        )


def _config(store: Store, origin: Origin, blob: Descriptor) -> bytes:
    """The configuration: from the store if an image there has it, else from the origin."""
    rows = store.query("select config from images where id = ?", blob.digest)
    if rows:
        return bytes(rows[0][0])
    data = b"".join(origin.blob(blob))
    if len(data) != blob.size:
        raise Tampered(f"the image's configuration has {len(data)} bytes, its manifest says {blob.size}")
    verify(data, blob.digest, "the image's configuration")
    return data


def _fits(image: ImageRow, wanted: Platform | None, progress: Progress) -> None:
    """Refuse what was not asked for; only say it if nobody asked."""
    there = platforms.parse(image.platform) if image.platform.count("/") else None
    if there is not None and there.os != "linux":
        raise ImageError(f"the image is for {there}; only Linux images can be used here")
    if there is None:
        return
    if wanted is not None and platforms.rank(there, wanted) is None:
        raise ImageError(f"the image is for {there} only, and {wanted} is asked for", remedy="leave --platform away")
    if wanted is None and platforms.rank(there, platforms.best()) is None:
        progress.warn(f"the image is for {there}, and this machine is {platforms.host()}")
