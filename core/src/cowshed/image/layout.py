"""OCI image layouts (image-spec image-layout.md): which images one holds, and under which names."""

from __future__ import annotations

from cowshed.errors import BadUsage, ImageError
from cowshed.image import manifest as manifests
from cowshed.image import platform as platforms
from cowshed.image import reference
from cowshed.storage.record import record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

    from cowshed.image.contents import Contents
    from cowshed.image.manifest import Descriptor
    from cowshed.image.platform import Platform

_NAMES = ("io.containerd.image.name", "org.opencontainers.image.ref.name")


@record(frozen=True)
class Listed:
    """An image of a layout: its manifest or index, and its canonical names."""

    target: Descriptor
    names: tuple[str, ...]


class LayoutOrigin:
    """Where `resolve` and `bring` get a layout's documents and blobs from."""

    def __init__(self, contents: Contents) -> None:
        self._contents = contents

    def manifest(self, wanted: str) -> tuple[bytes, str]:
        algorithm, _, digits = reference.check_digest(wanted).partition(":")
        data = self._contents.small(f"blobs/{algorithm}/{digits}")
        if data is None:
            raise ImageError(f"manifest {wanted[:19]} is missing in the layout", remedy="name a platform that it has")
        return data, ""

    def blob(self, blob: Descriptor, offset: int = 0) -> Iterator[bytes]:
        return self._contents.blob(blob, offset)


def is_layout(contents: Contents) -> bool:
    """Whether there is an `oci-layout` file. ImageError if it is of a version that nobody knows."""
    data = contents.small("oci-layout")
    if data is None:
        return False
    version = manifests.document(data, "oci-layout").get("imageLayoutVersion")
    if not isinstance(version, str) or version.partition(".")[0] != "1":
        raise ImageError(f"the image layout has version {str(version)[:40]!r}; 1 is known")
    return True


def images(contents: Contents, wanted: Platform | None) -> tuple[Listed, ...]:
    """The images of a layout. Entries of one name that differ in their platforms are one image: the fitting one."""
    data = contents.small("index.json")
    if data is None:
        raise ImageError("the image layout has no index.json")
    groups: dict[tuple[str, ...], list[dict[str, Any]]] = {}
    for target, entry in manifests.entries(manifests.document(data, "index.json")):
        names = _names(entry)
        if names or not entry.get("artifactType"):  # what is attached to an image is none
            groups.setdefault(names, []).append({**entry, "digest": target.digest})
    found = []
    for names, listed in groups.items():
        with_platform = [e for e in listed if platforms.of_entry(e) is not None]
        if len(with_platform) > 1:
            chosen = manifests.choose({"manifests": with_platform}, wanted or platforms.best())
            found.append(Listed(chosen, names))
            listed = [e for e in listed if e not in with_platform]
        found += [Listed(manifests.descriptor(e, "index.json"), names) for e in listed]
    if not found:
        raise ImageError("the image layout holds no image")
    return tuple(found)


def _names(entry: dict[str, Any]) -> tuple[str, ...]:
    """The canonical names of an entry. A bare word is a tag without a repository, and names nothing."""
    annotations = entry.get("annotations")
    if not isinstance(annotations, dict):
        return ()
    for key in _NAMES:
        text = annotations.get(key)
        if isinstance(text, str) and ("/" in text or ":" in text):
            try:
                parsed = reference.parse(text)
            except BadUsage as error:
                raise ImageError(f"the layout has an image with a name that is none: {error}") from None
            return () if parsed.digest else (parsed.name,)
    return ()
