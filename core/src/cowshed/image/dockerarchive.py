"""Docker archives, as `docker save` wrote them until version 24: manifest.json, configurations, a tar of each layer.

Their images have no manifest; one is made here, always the same for the same layers and configuration.
"""

from __future__ import annotations

import hashlib
import json

from cowshed.errors import BadUsage, ImageError, Tampered
from cowshed.image import config as configs
from cowshed.image import manifest as manifests
from cowshed.image import reference
from cowshed.image.manifest import OCI_CONFIG, OCI_LAYER, OCI_MANIFEST
from cowshed.image.resolve import Resolved, describe
from cowshed.storage.record import record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from cowshed.image.contents import Contents

_IMAGES = 1024
_LAYERS = 512


@record(frozen=True)
class Saved:
    """One entry of manifest.json."""

    config: str
    names: tuple[str, ...]  # canonical
    layers: tuple[str, ...]  # lowest first


def saved(contents: Contents) -> tuple[Saved, ...]:
    """The entries of manifest.json; none if there is no such file. ImageError."""
    data = contents.small("manifest.json")
    if data is None:
        return ()
    try:
        listed = json.loads(data)
    except (ValueError, RecursionError):
        raise ImageError("manifest.json is not JSON") from None
    if not isinstance(listed, list) or len(listed) > _IMAGES:
        raise ImageError("manifest.json is no list of images, or too long")
    return tuple(_entry(entry) for entry in listed)


def _entry(entry: Any) -> Saved:
    if not isinstance(entry, dict):
        raise ImageError("manifest.json has an entry that is no object")
    config, tags, layers = entry.get("Config"), entry.get("RepoTags") or [], entry.get("Layers") or []
    for value in (tags, layers):
        if not isinstance(value, list) or not all(isinstance(word, str) for word in value):
            raise ImageError("manifest.json has an entry without a list of names or layers")
    if not isinstance(config, str) or len(layers) > _LAYERS:
        raise ImageError("manifest.json has an entry without a configuration, or with too many layers")
    try:
        names = tuple(reference.parse(tag).name for tag in tags)
    except BadUsage as error:
        raise ImageError(f"manifest.json: {error}") from None
    return Saved(config, names, tuple(layers))


def resolve(contents: Contents, entry: Saved) -> Resolved:
    """An image of a docker archive. Tampered, ImageError."""
    config = contents.small(entry.config)
    if config is None:
        raise ImageError(f"the configuration {entry.config!r} is missing in the archive")
    digits = hashlib.sha256(config).hexdigest()
    named = entry.config.rpartition("/")[2].removesuffix(".json")
    if len(named) == 64 and set(named) <= set("0123456789abcdef") and named != digits:
        raise Tampered(f"the configuration {named[:12]} has the digest {digits[:12]}", remedy="copy the archive again")
    diff_ids = configs.check(manifests.document(config, "the image's configuration"), len(entry.layers))
    layers = []
    for name, diff_id in zip(entry.layers, diff_ids, strict=True):
        layer = contents.layer(name, diff_id)
        layers.append({"mediaType": layer.media_type, "digest": layer.digest, "size": layer.size})
    manifest = {
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "config": {"mediaType": OCI_CONFIG, "digest": f"sha256:{digits}", "size": len(config)},
        "layers": layers,
    }
    data = json.dumps(manifest, separators=(",", ":")).encode()
    parsed = manifests.parse_manifest(manifest)
    image = describe(data, OCI_MANIFEST, parsed, config)
    for n, (layer, diff) in enumerate(zip(parsed.layers, image.diff_ids, strict=True)):
        # a compressed one is held against its diff id when it is unpacked
        if layer.media_type == OCI_LAYER and layer.digest != diff:
            raise Tampered(
                f"layer {n + 1} of {len(layers)}: it has the digest {layer.digest[:19]}, its image says {diff[:19]}",
                remedy="copy the archive again",
            )
    return Resolved(image, parsed, image.manifest_digest)
