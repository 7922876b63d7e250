"""The store's images as a source of copies."""

from __future__ import annotations

from contextlib import ExitStack
from functools import partial

from cowshed.errors import ImageError
from cowshed.image.blobs import BlobStore
from cowshed.image.manifest import Descriptor
from cowshed.image.transports.graph import Root
from cowshed.state import images

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from cowshed.image.archives import Archives
    from cowshed.state.rows import ImageRow
    from cowshed.state.store import Store


class Stored:
    """Manifests and configurations out of the database, layers out of the blobs. The blobs of the images that are
    copied should be leased meanwhile."""

    def __init__(self, store: Store, blobs: Archives) -> None:
        self._store, self._blobs = store, blobs

    def document(self, wanted: Descriptor) -> bytes:
        image = images.by_digest(self._store, wanted.digest)
        if image is None:
            raise ImageError(
                f"manifest {wanted.digest[:19]} is not in the store", remedy="cowshed images lists what is"
            )
        return image.manifest

    def blob(self, blob: Descriptor, offset: int = 0) -> Iterator[bytes]:
        """In the store's thread."""
        with ExitStack() as opened:
            yield from self.reader(blob, opened)(offset)

    def reader(self, blob: Descriptor, opened: ExitStack) -> Callable[[int], Iterator[bytes]]:
        """What gives the bytes of a blob from an offset on, in any thread, until `opened` is closed."""
        image = images.exact(self._store, blob.digest)
        if image is not None:
            config = image.config
            return lambda offset: iter((config[offset:],))
        try:
            if self._blobs.size(blob.digest) < 0:
                return opened.enter_context(self._blobs.opened(blob.digest))
        except FileNotFoundError:
            pass  # `kept` tells it, if the blob is wanted at all
        except ImageError as error:
            return partial(_fail, error)

        def kept(offset: int) -> Iterator[bytes]:
            try:
                yield from BlobStore.read(self._blobs, blob.digest, offset)
            except FileNotFoundError:
                raise ImageError(
                    f"blob {blob.digest[:19]} is not in the store", remedy="pull the image again"
                ) from None

        return kept

    def referrers(self, subject: Descriptor) -> list[Descriptor]:
        """None: the store keeps images only."""
        return []


def _fail(error: ImageError, offset: int) -> Iterator[bytes]:
    raise error


def root(image: ImageRow, names: Iterable[str] = ()) -> Root:
    return Root(Descriptor(image.manifest_digest, len(image.manifest), image.media_type), tuple(names))
