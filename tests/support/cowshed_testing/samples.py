"""Images that tests pull and load, and ways to spoil them."""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING

from cowshed_testing.images import Image, LayerTar

if TYPE_CHECKING:
    from collections.abc import Callable


def small(compression: str = "gzip", **config: object) -> Image:
    """Three layers: files, more files, a whiteout."""
    return Image(
        [
            LayerTar().dir("d").file("d/one", "1").file("d/two", "2").bytes(),
            LayerTar().file("e/three", "3" * 5000).bytes(),
            LayerTar().dir("d").whiteout("d/two").file("d/four", "4").bytes(),
        ],
        config,
        compression=compression,
    )


SMALL = {"d": None, "d/one": b"1", "d/four": b"4", "e": None, "e/three": b"3" * 5000}


def changed(image: Image, change: Callable[[dict], object]) -> Image:
    """The image with another manifest: change(document) works on it."""
    document = json.loads(image.manifest)
    change(document)
    image.manifest = json.dumps(document).encode()
    image.digest = "sha256:" + hashlib.sha256(image.manifest).hexdigest()
    return image


def with_config(image: Image, change: Callable[[dict], object]) -> Image:
    """The image with another configuration, its manifest fitting to it."""
    document = json.loads(image.blobs.pop(image.id))
    change(document)
    data = json.dumps(document).encode()
    image.id = "sha256:" + hashlib.sha256(data).hexdigest()
    image.blobs[image.id] = data
    return changed(image, lambda manifest: manifest["config"].update(digest=image.id, size=len(data)))
