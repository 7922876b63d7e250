"""Manifests and indexes: read, checked, chosen from (image-spec manifest.md, image-index.md, descriptor.md; Docker
schema 2). Nothing here asks anybody; bytes come in, records go out, ImageError says what is wrong."""

from __future__ import annotations

import json

from cowshed.errors import BadUsage, ImageError
from cowshed.image import platform as platforms
from cowshed.image.reference import check_digest
from cowshed.storage.record import record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from cowshed.image.platform import Platform

OCI_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
OCI_INDEX = "application/vnd.oci.image.index.v1+json"
OCI_CONFIG = "application/vnd.oci.image.config.v1+json"
OCI_LAYER = "application/vnd.oci.image.layer.v1.tar"
DOCKER_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
DOCKER_LIST = "application/vnd.docker.distribution.manifest.list.v2+json"
DOCKER_CONFIG = "application/vnd.docker.container.image.v1+json"
MANIFESTS, INDEXES = (OCI_MANIFEST, DOCKER_MANIFEST), (OCI_INDEX, DOCKER_LIST)
LIMIT = 4 << 20  # bytes of a manifest, index or configuration (distribution-spec names 4 MiB)
LAYERS = 512
ENTRIES = 4096
_DOCKER_LAYER = "application/vnd.docker.image.rootfs."
# media type of a layer -> the compression it claims
LAYER_TYPES = {
    OCI_LAYER: "", f"{OCI_LAYER}+gzip": "gzip", f"{OCI_LAYER}+zstd": "zstd",
    "application/vnd.oci.image.layer.nondistributable.v1.tar": "",
    "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip": "gzip",
    "application/vnd.oci.image.layer.nondistributable.v1.tar+zstd": "zstd",
    f"{_DOCKER_LAYER}diff.tar": "", f"{_DOCKER_LAYER}diff.tar.gzip": "gzip", f"{_DOCKER_LAYER}diff.tar.zstd": "zstd",
    f"{_DOCKER_LAYER}foreign.diff.tar": "", f"{_DOCKER_LAYER}foreign.diff.tar.gzip": "gzip",
}  # fmt: skip


@record(frozen=True)
class Descriptor:
    """Names bytes by digest and size (descriptor.md)."""

    digest: str
    size: int
    media_type: str
    urls: tuple[str, ...] = ()


@record(frozen=True)
class Manifest:
    config: Descriptor
    layers: tuple[Descriptor, ...]  # lowest first


def document(data: bytes, what: str) -> dict[str, Any]:
    """A JSON object within the limit."""
    if len(data) > LIMIT:
        raise ImageError(f"{what} has {len(data)} bytes; {LIMIT} are allowed")
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):
        raise ImageError(f"{what} is not JSON") from None
    if not isinstance(value, dict):
        raise ImageError(f"{what} is no JSON object")
    return value


def descriptor(value: Any, what: str) -> Descriptor:
    """A descriptor with a digest that is safe to make a path of, and a size that is one."""
    if not isinstance(value, dict):
        raise ImageError(f"{what} is no descriptor")
    size = value.get("size")
    if type(size) is not int or size < 0:
        raise ImageError(f"{what} has the size {str(size)[:40]!r}")
    digest = value.get("digest")
    try:
        if not isinstance(digest, str):
            raise BadUsage(f"the digest is {str(digest)[:40]!r}")
        check_digest(digest)
    except BadUsage as error:
        raise ImageError(f"{what}: {error}") from None
    urls = value.get("urls")
    urls = tuple(u for u in urls if isinstance(u, str)) if isinstance(urls, list) else ()
    media_type = value.get("mediaType")
    return Descriptor(digest, size, media_type if isinstance(media_type, str) else "", urls)


def media_type(value: dict[str, Any], said: str) -> str:
    """What a document is: its own word, which must be the server's too, else the server's, else what it looks like.

    A document that could be read as manifest and as index is refused (CVE-2021-41190).
    """
    if "manifests" in value and ("layers" in value or "config" in value):
        raise ImageError("the manifest could be read as an index too (CVE-2021-41190)")
    if value.get("schemaVersion") == 1:
        raise ImageError("the image has Docker's schema 1, which is no longer supported", remedy="push it again")
    known = (*MANIFESTS, *INDEXES)
    own = value.get("mediaType")
    said = said.partition(";")[0].strip().lower()
    if own is not None and own not in known:
        raise ImageError(f"the manifest has the unknown type {str(own)[:100]!r}")
    if own and said in known and own != said:
        raise ImageError(f"the manifest calls itself {own}, and the registry calls it {said}")
    found = own or said
    if found not in known:
        found = OCI_INDEX if "manifests" in value else OCI_MANIFEST if "layers" in value else ""
    if not found:
        raise ImageError(f"the manifest is neither one nor an index (type {said[:100]!r})")
    if ("manifests" if found in MANIFESTS else "layers") in value:
        raise ImageError(f"the manifest calls itself {found} and does not look like it")
    return str(found)


def parse_manifest(value: dict[str, Any]) -> Manifest:
    """The configuration and the layers of an image. ImageError for what is no image of file-system layers."""
    layers = value.get("layers")
    if not isinstance(layers, list):
        raise ImageError("the manifest has no list of layers")
    if len(layers) > LAYERS:
        raise ImageError(f"the manifest has {len(layers)} layers; {LAYERS} are allowed")
    config = descriptor(value.get("config"), "the manifest's configuration")
    if config.media_type not in (OCI_CONFIG, DOCKER_CONFIG, ""):
        kind = value.get("artifactType") or config.media_type
        raise ImageError(f"it is no container image but {str(kind)[:100]!r}", remedy="name an image")
    if config.size > LIMIT:
        raise ImageError(f"the configuration has {config.size} bytes; {LIMIT} are allowed")
    found = tuple(descriptor(layer, f"layer {n + 1}") for n, layer in enumerate(layers))
    for n, layer in enumerate(found):
        if layer.media_type not in LAYER_TYPES:
            raise ImageError(f"layer {n + 1} has the unknown type {layer.media_type[:100]!r}")
    return Manifest(config, found)


def is_foreign(layer: Descriptor) -> bool:
    """Whether a layer is one that may not be passed on: it is pulled from its `urls`, and not pushed."""
    return ".nondistributable." in layer.media_type or ".foreign." in layer.media_type


def entries(value: dict[str, Any]) -> list[tuple[Descriptor, dict[str, Any]]]:
    """The entries of an index that can be images: each with its descriptor, in order."""
    listed = value.get("manifests")
    if not isinstance(listed, list):
        raise ImageError("the index has no list of manifests")
    if len(listed) > ENTRIES:
        raise ImageError(f"the index has {len(listed)} entries; {ENTRIES} are allowed")
    found = []
    for n, entry in enumerate(listed):
        if isinstance(entry, dict) and entry.get("mediaType", OCI_MANIFEST) in (*MANIFESTS, *INDEXES, None):
            found.append((descriptor(entry, f"entry {n + 1} of the index"), entry))
    return found


def choose(value: dict[str, Any], wanted: Platform) -> Descriptor:
    """The entry of an index for a platform: the nearest variant, of equals the first (image-index.md). One without a
    platform is taken only if it is alone. ImageError names what there is."""
    found = entries(value)
    best: tuple[int, Descriptor] | None = None
    offered = []
    for each, entry in found:
        there = platforms.of_entry(entry)
        if there is None:
            if len(found) == 1:
                return each
            continue
        distance = platforms.rank(there, wanted)
        if there.os != "unknown":
            offered.append(str(there))
        if distance is not None and (best is None or distance < best[0]):
            best = distance, each
    if best is None:
        raise ImageError(
            f"the image has nothing for {wanted}; it is there for {', '.join(dict.fromkeys(offered)) or 'nothing'}",
            remedy="choose one with --platform",
        )
    return best[1]
