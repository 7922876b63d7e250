"""Writing image layouts (image-spec image-layout.md), as directories or archives, and the archives of `docker save`,
which are layouts with a manifest.json since version 25."""

from __future__ import annotations

import json

from cowshed.errors import BadUsage, ImageError
from cowshed.image import manifest as manifests
from cowshed.image import reference
from cowshed.image.manifest import LIMIT, MANIFESTS, OCI_INDEX, Descriptor

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from typing import Any

    from cowshed.image.transports.files import Files
    from cowshed.image.transports.graph import Root

NAME, FULL_NAME = "org.opencontainers.image.ref.name", "io.containerd.image.name"


def as_word(name: str) -> dict[str, str]:
    """The annotations of an image whose name in the layout is any word."""
    return {NAME: name} if name else {}


def as_full_name(name: str) -> dict[str, str]:
    """Of an image with a canonical name, as podman writes them."""
    return {FULL_NAME: name, NAME: name}


def as_tag(name: str) -> dict[str, str]:
    """Of an image with a canonical name, as docker and containerd write them."""
    return {FULL_NAME: name, NAME: reference.parse(name).tag}


class LayoutTarget:
    """A layout. What is in it already stays, but for names that are given anew."""

    def __init__(self, files: Files, annotations: Callable[[str], dict[str, str]], *, docker: bool = False) -> None:
        self._files, self._annotations, self._docker = files, annotations, docker
        self._images: dict[str, dict[str, Any]] = {}  # manifests by digest, for manifest.json
        self._attached: list[Descriptor] = []

    def has(self, blob: Descriptor) -> bool:
        return self._files.has(path_of(blob), blob.size)

    def blob(self, blob: Descriptor, pieces: Iterable[bytes]) -> None:
        self._files.put(path_of(blob), blob.size, pieces)

    def document(self, wanted: Descriptor, data: bytes) -> None:
        if not self.has(wanted):
            self._files.put(path_of(wanted), wanted.size, [data])
        value = manifests.document(data, "the manifest")
        if value.get("subject") is not None:
            self._attached.append(wanted)
        if self._docker and wanted.media_type in MANIFESTS:
            self._images[wanted.digest] = value

    def finish(self, roots: Iterable[Root]) -> None:
        """Write what names the images, last."""
        roots = list(roots)
        listed: list[dict[str, Any]] = []
        for root in roots:
            for name in root.names or ("",):
                said = self._annotations(name) if name else {}
                entry: dict[str, Any] = _entry(root.target)
                listed.append({**entry, "annotations": said} if said else entry)
        here = {entry["digest"] for entry in listed}
        listed += [_entry(each) for each in self._attached if each.digest not in here]
        index = {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [*self._kept(listed), *listed]}
        if self._docker:
            self._put("manifest.json", [self._saved(root) for root in roots])
        self._put("index.json", index)
        self._put("oci-layout", {"imageLayoutVersion": "1.0.0"})
        self._files.finish()

    def _kept(self, listed: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """The entries of an index that was there, without those that are written anew."""
        data = self._files.read("index.json", LIMIT + 1)
        if data is None:
            return []
        there = manifests.document(data, "index.json").get("manifests")
        if not isinstance(there, list) or not all(isinstance(entry, dict) for entry in there):
            raise ImageError("the image layout has an index.json without a list of manifests")
        names = {entry["annotations"][NAME] for entry in listed if "annotations" in entry}
        digests = {entry["digest"] for entry in listed}

        def anew(entry: dict[str, Any]) -> bool:
            annotations = entry.get("annotations")
            name = annotations.get(NAME) if isinstance(annotations, dict) else None
            return name in names if name else entry.get("digest") in digests

        return [entry for entry in there if not anew(entry)]

    def _saved(self, root: Root) -> dict[str, Any]:
        value = self._images.get(root.target.digest)
        if value is None:
            raise BadUsage("a docker archive holds images of one platform each", remedy="use an oci-archive")
        parsed = manifests.parse_manifest(value)
        return {
            "Config": path_of(parsed.config),
            "RepoTags": [reference.familiar(name) for name in root.names] or None,
            "Layers": [path_of(layer) for layer in parsed.layers],
        }

    def _put(self, name: str, value: object) -> None:
        data = json.dumps(value, separators=(",", ":")).encode()
        self._files.put(name, len(data), [data])


def path_of(blob: Descriptor) -> str:
    """Where a blob lies in a layout; its digest has been checked for its form."""
    algorithm, _, digits = reference.check_digest(blob.digest).partition(":")
    return f"blobs/{algorithm}/{digits}"


def _entry(target: Descriptor) -> dict[str, Any]:
    return {"mediaType": target.media_type, "digest": target.digest, "size": target.size}
