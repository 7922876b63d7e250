"""Directories of one image, as skopeo and podman call them `dir:`: manifest.json, blobs by their digits, a version."""

from __future__ import annotations

from cowshed.errors import BadUsage, ImageError
from cowshed.image import reference
from cowshed.image.manifest import LIMIT
from cowshed.image.transports.graph import describe

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from cowshed.image.contents import Contents
    from cowshed.image.manifest import Descriptor
    from cowshed.image.transports.files import Files
    from cowshed.image.transports.graph import Root

_VERSION = "Directory Transport Version: 1.1\n"


class FlatTarget:
    """Such a directory. Of an index, the manifests that it leads to are there by their digits."""

    def __init__(self, files: Files) -> None:
        self._files = files
        self._documents: dict[str, tuple[Descriptor, bytes]] = {}

    @property
    def side_by_side(self) -> bool:
        return self._files.side_by_side

    def has(self, blob: Descriptor) -> bool:
        return self._files.has(name_of(blob.digest), blob.size)

    def blob(self, blob: Descriptor, pieces: Callable[[int], Iterable[bytes]]) -> None:
        self._files.put(name_of(blob.digest), blob.size, pieces(0))

    def document(self, wanted: Descriptor, data: bytes) -> None:
        self._documents[wanted.digest] = wanted, data

    def finish(self, roots: Iterable[Root]) -> None:
        """BadUsage for anything but one image."""
        digests = {root.target.digest for root in roots}
        if len(digests) != 1:
            raise BadUsage("such a directory holds one image", remedy="use an oci-dir for several")
        for digest, (wanted, data) in self._documents.items():
            name = "manifest.json" if digest in digests else f"{name_of(digest)}.manifest.json"
            self._files.put(name, wanted.size, [data])
        self._files.put("version", len(_VERSION), [_VERSION.encode()])
        self._files.finish()


class FlatContents:
    """Such a directory, read as if it were a layout without an index."""

    def __init__(self, contents: Contents) -> None:
        self._contents = contents
        self._own = ""  # the digest of the image's own manifest

    def root(self) -> Descriptor:
        """What manifest.json is."""
        found = describe(self.manifest("")[0])
        self._own = found.digest
        return found

    def document(self, wanted: Descriptor) -> bytes:
        return self.manifest("" if wanted.digest == self._own else wanted.digest)[0]

    def referrers(self, subject: Descriptor) -> list[Descriptor]:
        """None: such a directory holds one image."""
        return []

    def manifest(self, wanted: str) -> tuple[bytes, str]:
        """By digest, or the image's own for ""."""
        name = f"{name_of(wanted)}.manifest.json" if wanted else "manifest.json"
        data = self._contents.small(name)
        if data is None:
            raise ImageError(f"manifest {wanted[:19]} is missing in the directory", remedy="copy it with --all")
        return data, ""

    def blob(self, blob: Descriptor, offset: int = 0) -> Iterator[bytes]:
        return self._contents.blob(blob, offset, name=name_of(blob.digest))


def is_flat(contents: Contents) -> bool:
    """Whether it is such a directory, rather than an unpacked docker archive, which has a manifest.json too."""
    data = contents.small("manifest.json")
    return data is not None and len(data) <= LIMIT and data.lstrip()[:1] == b"{"


def name_of(digest: str) -> str:
    algorithm, _, digits = reference.check_digest(digest).partition(":")
    return digits if algorithm == "sha256" else f"{algorithm}-{digits}"
