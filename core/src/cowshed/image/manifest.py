"""Manifests, indexes and configurations: read, checked, chosen from (image-spec manifest.md, image-index.md, config.md;
Docker schema 2)."""

from __future__ import annotations

import json

from cowshed.errors import ImageError
from cowshed.image.reference import check_digest
from cowshed.storage.record import record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

OCI_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
OCI_INDEX = "application/vnd.oci.image.index.v1+json"
DOCKER_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
DOCKER_LIST = "application/vnd.docker.distribution.manifest.list.v2+json"
MANIFESTS, INDEXES = (OCI_MANIFEST, DOCKER_MANIFEST), (OCI_INDEX, DOCKER_LIST)
ACCEPT = ", ".join((*MANIFESTS, *INDEXES))
LIMIT = 4 << 20
_LAYERS = 512
_VARIANTS = {"arm": ("v8", "v7", "v6", "v5"), "arm64": ("v9", "v8"), "amd64": ("v4", "v3", "v2", "v1")}
_MACHINES = {"x86_64": "amd64", "aarch64": "arm64", "armv7l": "arm/v7", "armv6l": "arm/v6", "i686": "386"}


@record(frozen=True)
class Descriptor:
    digest: str
    size: int
    media_type: str


@record(frozen=True)
class Manifest:
    config: Descriptor
    layers: tuple[Descriptor, ...]


def document(data: bytes, what: str) -> dict[str, Any]:
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
    if not isinstance(value, dict) or type(value.get("size")) is not int or value["size"] < 0:
        raise ImageError(f"{what} has no sound descriptor")
    try:
        digest = check_digest(str(value.get("digest")))
    except Exception as error:
        raise ImageError(f"{what}: {error}") from None
    return Descriptor(digest, value["size"], str(value.get("mediaType", "")))


def media_type(value: dict[str, Any], said: str) -> str:
    """What a document is: its own word, else the server's. A document that could be read as both is refused
    (CVE-2021-41190)."""
    if "manifests" in value and ("layers" in value or "config" in value):
        raise ImageError("the manifest could be read as an index too")
    if value.get("schemaVersion") == 1:
        raise ImageError("the image has Docker's schema 1, which nobody should use any more", remedy="push it again")
    own = value.get("mediaType")
    found = own or said.partition(";")[0].strip()
    if found not in (*MANIFESTS, *INDEXES):
        found = OCI_INDEX if "manifests" in value else OCI_MANIFEST if "layers" in value else str(found)
    if found not in (*MANIFESTS, *INDEXES):
        raise ImageError(f"the manifest has the unknown type {found[:100]!r}")
    return found


def parse_manifest(value: dict[str, Any]) -> Manifest:
    layers = value.get("layers")
    if not isinstance(layers, list) or len(layers) > _LAYERS:
        raise ImageError("the manifest has no list of layers, or too many")
    return Manifest(
        descriptor(value.get("config"), "the manifest's config"),
        tuple(descriptor(layer, f"layer {n} of the manifest") for n, layer in enumerate(layers)),
    )


def host_platform() -> str:
    import os

    machine = os.uname().machine
    return f"linux/{_MACHINES.get(machine, machine)}"


def normal_platform(text: str) -> str:
    """OS/ARCHITECTURE[/VARIANT]; a lone architecture is of linux; other people's names become Go's."""
    parts = text.lower().split("/")
    if len(parts) == 1:
        parts = ["linux", *parts] if parts[0] != "linux" else host_platform().split("/")
    architecture = {"x86_64": "amd64", "x86-64": "amd64", "aarch64": "arm64", "armhf": "arm/v7"}.get(parts[1], parts[1])
    return "/".join([parts[0], *architecture.split("/"), *parts[2:]])


def choose(value: dict[str, Any], platform: str) -> Descriptor:
    """The manifest of an index for a platform: same system and architecture, the best variant not above the wanted one;
    the first of equals. ImageError if there is none, naming what there is."""
    os_, architecture, *rest = platform.split("/")
    order = _VARIANTS.get(architecture, ())
    wanted = rest[0] if rest else (order[0] if order else "")
    best: tuple[int, Descriptor] | None = None
    offered = []
    for entry in value.get("manifests") or ():
        if not isinstance(entry, dict):
            continue
        there = entry.get("platform") or {}
        offered.append("/".join(str(there[k]) for k in ("os", "architecture", "variant") if there.get(k)))
        if there and (there.get("os"), there.get("architecture")) != (os_, architecture):
            continue
        variant = there.get("variant") or ""
        if variant and order and wanted in order:
            if variant not in order or order.index(variant) < order.index(wanted):
                continue
            rank = order.index(variant)
        else:
            rank = len(order) if not variant or not rest or variant == wanted else 99
        if best is None or rank < best[0]:
            best = rank, descriptor(entry, "the index")
    if best is None:
        raise ImageError(
            f"the image has nothing for {platform}; it has {', '.join(filter(None, offered)) or 'nothing'}"
        )
    return best[1]


def diff_ids(config: dict[str, Any], count: int) -> tuple[str, ...]:
    """The diff ids of a configuration, one per layer. ImageError if they do not fit."""
    rootfs = config.get("rootfs")
    if not isinstance(rootfs, dict) or rootfs.get("type") != "layers" or not isinstance(rootfs.get("diff_ids"), list):
        raise ImageError("the image's configuration lists no layers")
    found = tuple(str(d) for d in rootfs["diff_ids"])
    if len(found) != count:
        raise ImageError(f"the image has {count} layers and {len(found)} diff ids")
    for digest in found:
        try:
            check_digest(digest)
        except Exception as error:
            raise ImageError(f"a diff id of the image: {error}") from None
    return found


def created_ns(text: Any) -> int:
    """RFC 3339 to ns since the epoch; 0 for what is none."""
    from datetime import datetime

    if not isinstance(text, str):
        return 0
    whole, _, rest = text.replace("Z", "+00:00").partition(".")
    zone = rest.lstrip("0123456789")
    try:
        return int(datetime.fromisoformat(whole + zone).timestamp() * 1e9)
    except ValueError:
        return 0
