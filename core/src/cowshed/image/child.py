"""A new image that is made here, of another and one more layer or of one layer alone: configuration and manifest
(image-spec config.md, manifest.md)."""

from __future__ import annotations

import hashlib
import json

from cowshed.image import manifest as manifests
from cowshed.image.resolve import describe

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from cowshed.image.manifest import Descriptor
    from cowshed.image.platform import Platform
    from cowshed.state.rows import ImageRow

# What docker writes of the container that an image was made from, and what is said of the old image only.
_DROPPED = ("container", "container_config", "docker_version", "id", "parent", "author", "created", "history", "rootfs")


def child(
    base: ImageRow,
    own: dict[str, Any],
    layer: tuple[Descriptor, str] | None,
    *,
    created: int,
    created_by: str = "",
    author: str = "",
    comment: str = "",
) -> ImageRow:
    """The row of the new image. own: its `config`; layer: descriptor and diff id, None if nothing was changed;
    created: ns since the epoch. ImageError if an image cannot be so."""
    config = {key: value for key, value in json.loads(base.config).items() if key not in _DROPPED}
    layers = [manifests.Descriptor(digest, size, _oci(kind)) for digest, kind, size in base.blobs]
    texts = {"created_by": created_by, "author": author, "comment": comment}
    return _made(config, own, _history(base), layers, base.diff_ids, layer, created, texts)


def first(
    platform: Platform, own: dict[str, Any], layer: tuple[Descriptor, str], *, created: int, comment: str = ""
) -> ImageRow:
    """The row of an image of one layer."""
    config = {"architecture": platform.architecture, "os": platform.os}
    if platform.variant:
        config["variant"] = platform.variant
    return _made(config, own, [], [], (), layer, created, {"comment": comment})


def _made(
    config: dict[str, Any], own: dict[str, Any], history: list[dict[str, Any]], layers: list[Descriptor],
    diff_ids: tuple[str, ...], layer: tuple[Descriptor, str] | None, created: int, texts: dict[str, str],
) -> ImageRow:  # fmt: skip
    said = _rfc3339(created)
    step: dict[str, Any] = {"created": said}
    step.update({key: value for key, value in texts.items() if value})
    if layer is None:
        step["empty_layer"] = True
    config["created"] = said
    if texts.get("author"):
        config["author"] = texts["author"]
    config["config"] = own
    diffs = [*diff_ids, *([layer[1]] if layer else ())]
    config["rootfs"] = {"type": "layers", "diff_ids": diffs}
    config["history"] = [*history, step]
    text = json.dumps(config, separators=(",", ":"), sort_keys=True).encode()
    if layer is not None:
        layers = [*layers, layer[0]]
    told = manifests.Descriptor("sha256:" + hashlib.sha256(text).hexdigest(), len(text), manifests.OCI_CONFIG)
    document = {
        "schemaVersion": 2,
        "mediaType": manifests.OCI_MANIFEST,
        "config": _descriptor(told),
        "layers": [_descriptor(each) for each in layers],
    }
    data = json.dumps(document, separators=(",", ":")).encode()
    return describe(data, manifests.OCI_MANIFEST, manifests.parse_manifest(document), text)


def _history(base: ImageRow) -> list[dict[str, Any]]:
    """The steps of the old image, one for each layer at least: a history that leaves some out would be wrong of all."""
    steps = json.loads(base.config).get("history") or []
    full = sum(1 for step in steps if not step.get("empty_layer"))
    return steps if full == len(base.diff_ids) else [{} for _ in base.diff_ids]


def _oci(kind: str) -> str:
    """OCI's name of a layer's type that may be docker's."""
    packed = manifests.LAYER_TYPES.get(kind, "")
    name = manifests.OCI_LAYER
    if "foreign" in kind or "nondistributable" in kind:
        name = "application/vnd.oci.image.layer.nondistributable.v1.tar"
    return f"{name}+{packed}" if packed else name


def _descriptor(blob: Descriptor) -> dict[str, Any]:
    return {"mediaType": blob.media_type, "digest": blob.digest, "size": blob.size}


def _rfc3339(ns: int) -> str:
    from time import gmtime, strftime

    return f"{strftime('%Y-%m-%dT%H:%M:%S', gmtime(ns // 10**9))}.{ns % 10**9:09d}Z"
