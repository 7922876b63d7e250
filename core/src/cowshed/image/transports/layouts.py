"""Image layouts (image-spec image-layout.md), as directories or archives, as sources and targets of copies; and the
archives of `docker save`, which are layouts with a manifest.json since version 25."""

from __future__ import annotations

import json

from cowshed.errors import BadUsage, ImageError
from cowshed.image import manifest as manifests
from cowshed.image import reference
from cowshed.image.manifest import LIMIT, MANIFESTS, OCI_INDEX
from cowshed.registry.referrers import subject_of, type_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from typing import Any

    from cowshed.image.contents import Contents
    from cowshed.image.manifest import Descriptor
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
        self._attached: list[dict[str, Any]] = []

    @property
    def side_by_side(self) -> bool:
        return self._files.side_by_side

    def has(self, blob: Descriptor) -> bool:
        return self._files.has(path_of(blob), blob.size)

    def blob(self, blob: Descriptor, pieces: Callable[[int], Iterable[bytes]]) -> None:
        self._files.put(path_of(blob), blob.size, pieces(0))

    def document(self, wanted: Descriptor, data: bytes) -> None:
        if not self.has(wanted):
            self._files.put(path_of(wanted), wanted.size, [data])
        value = manifests.document(data, "the manifest")
        if value.get("subject") is not None:
            self._attached.append({**_entry(wanted), "artifactType": type_of(data)})
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
        listed += [entry for entry in self._attached if entry["digest"] not in here]
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


class LayoutSource:
    """A layout, read."""

    def __init__(self, contents: Contents) -> None:
        self._contents = contents

    def document(self, wanted: Descriptor) -> bytes:
        data = self._contents.small(path_of(wanted))
        if data is None:
            raise ImageError(f"manifest {wanted.digest[:19]} is missing in the layout")
        return data

    def blob(self, blob: Descriptor, offset: int = 0) -> Iterator[bytes]:
        return self._contents.blob(blob, offset)

    def referrers(self, subject: Descriptor) -> list[Descriptor]:
        """Those that the index lists, as ORAS writes them."""
        found = []
        for entry in self.listed():
            target = manifests.descriptor(entry, "an entry of index.json")
            if target.size <= LIMIT and target.digest != subject.digest:
                data = self._contents.small(path_of(target))
                if data is not None and subject_of(data) == subject.digest:
                    found.append(target)
        return found

    def listed(self) -> list[dict[str, Any]]:
        """The entries of index.json. ImageError."""
        data = self._contents.small("index.json")
        if data is None:
            raise ImageError("the image layout has no index.json")
        entries = manifests.document(data, "index.json").get("manifests")
        if not isinstance(entries, list) or len(entries) > manifests.ENTRIES:
            raise ImageError("the image layout has an index.json without a list of manifests, or with too long a one")
        return [entry for entry in entries if isinstance(entry, dict)]

    def find(self, word: str) -> Descriptor:
        """The image that a word means: a name of it, or a digest; "": the only one. ImageError names what is there."""
        found: dict[str, Descriptor] = {}
        names: list[str] = []
        for entry in self.listed():
            said = _names(entry)
            target = manifests.descriptor(entry, "an entry of index.json")
            if word in (*said, target.digest) or (not word and (said or not entry.get("artifactType"))):
                found[target.digest] = target
            names += said
        if len(found) == 1:
            return found.popitem()[1]
        what = (
            f"no image {word[:100]!r}" if word and not found else f"{len(found)} images" + f" {word[:100]}" * bool(word)
        )
        offered = ", ".join(dict.fromkeys(names)) or "none with a name"
        raise ImageError(f"the layout has {what}", remedy=f"name one behind a colon: {offered[:300]}")


def _names(entry: dict[str, Any]) -> list[str]:
    annotations = entry.get("annotations")
    if not isinstance(annotations, dict):
        return []
    found = [annotations[key] for key in (FULL_NAME, NAME) if isinstance(annotations.get(key), str)]
    return [*found, *[reference.familiar(name) for name in found]]
