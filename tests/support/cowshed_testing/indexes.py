"""Indexes of images for several platforms, in a registry of ours."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from cowshed_testing.fake_registry import MANIFEST
from cowshed_testing.images import Image, LayerTar, digest
from cowshed_testing.samples import with_config

if TYPE_CHECKING:
    from cowshed_testing.fake_registry import FakeRegistry

INDEX = "application/vnd.oci.image.index.v1+json"


def index_of(fake: FakeRegistry, images_of: list[tuple[str, Image]], kind: str = INDEX, **more: object) -> bytes:
    """Put an index into the registry: platform words ("" for none) and image of each entry; its bytes."""
    entries = []
    for words, image in images_of:
        fake.blobs.update(image.blobs)
        fake.manifests[image.digest] = image.manifest, MANIFEST
        entry: dict[str, object] = {
            "mediaType": MANIFEST,
            "digest": image.digest,
            "size": len(image.manifest),
        }
        if words:
            entry["platform"] = dict(zip(("os", "architecture", "variant"), words.split("/"), strict=False))
        entries.append(entry)
    data = json.dumps({"schemaVersion": 2, "mediaType": kind, "manifests": entries, **more}).encode()
    fake.put("latest", data, kind)
    fake.put(digest(data), data, kind)
    return data


def of(architecture: str, variant: str = "", os_: str = "linux") -> Image:
    """An image that is for a platform."""

    def change(config: dict) -> None:
        config.update(architecture=architecture, os=os_)
        if variant:
            config["variant"] = variant

    return with_config(Image([LayerTar().file("arch", f"{architecture}/{variant}").bytes()]), change)
