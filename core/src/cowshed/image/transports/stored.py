"""The store's images as a source of copies."""

from __future__ import annotations

from cowshed.errors import ImageError
from cowshed.image.manifest import Descriptor
from cowshed.image.transports.graph import Root
from cowshed.state import images

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from cowshed.image.blobs import BlobStore
    from cowshed.state.rows import ImageRow
    from cowshed.state.store import Store


class Stored:
    """Manifests and configurations out of the database, layers out of the blobs. The blobs of the images that are
    copied should be leased meanwhile."""

    def __init__(self, store: Store, blobs: BlobStore) -> None:
        self._store, self._blobs = store, blobs

    def document(self, wanted: Descriptor) -> bytes:
        image = images.by_digest(self._store, wanted.digest)
        if image is None:
            raise ImageError(
                f"manifest {wanted.digest[:19]} is not in the store", remedy="cowshed images lists what is"
            )
        return image.manifest

    def blob(self, blob: Descriptor, offset: int = 0) -> Iterator[bytes]:
        image = images.exact(self._store, blob.digest)
        if image is not None:
            yield image.config[offset:]
            return
        try:
            yield from self._blobs.read(blob.digest, offset)
        except FileNotFoundError:
            raise ImageError(f"blob {blob.digest[:19]} is not in the store", remedy="pull the image again") from None

    def referrers(self, subject: Descriptor) -> list[Descriptor]:
        """None: the store keeps images only."""
        return []


def root(image: ImageRow, names: Iterable[str] = ()) -> Root:
    return Root(Descriptor(image.manifest_digest, len(image.manifest), image.media_type), tuple(names))
