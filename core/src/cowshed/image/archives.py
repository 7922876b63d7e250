"""Archives of layers that are in a driver: dropped, and made again from the layer when they are needed.

What a recipe (`cowshed.image.recipe`) and the layer give is the archive bit for bit, so that whoever pushes, saves or
checks an image reads it as if it were there. An archive is dropped only when this has been tried: if no compressor that
is here gives its bytes, or if no driver holds its layer so that a power cut cannot take it, it is kept.

The recipe is on the disk before the archive is deleted. Nobody deletes an archive that a running command counts on
(`cowshed.state.leases`); whoever reads one has leased it.
"""

from __future__ import annotations

import os
from contextlib import closing, contextmanager, suppress

from cowshed import log
from cowshed.errors import CowshedError, ImageError
from cowshed.image import packing
from cowshed.image.blobs import BlobStore
from cowshed.image.outgoing import NewBlob
from cowshed.image.recipe import About, Recipe, make
from cowshed.layers.faults import step
from cowshed.layers.unpack import decompress
from cowshed.state import images, leases
from cowshed.storage.errors import StorageError
from cowshed.storage.record import record
from cowshed_linux import files, process

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Container, Generator, Iterable, Iterator

    from cowshed.image.manifest import Descriptor
    from cowshed.image.packing import Packing
    from cowshed.layers.layers import Layers
    from cowshed.state.store import Store

_WAIT = 60.0  # seconds for another command to delete blobs, or to take leases


@record(frozen=True)
class Fate:
    """What may become of one archive."""

    digest: str
    size: int
    diff_id: str
    packing: Packing | None  # None: it is kept
    why: str = ""  # it is kept


class Archives(BlobStore):
    """The blobs of a store, those that were dropped as well. To be opened in one thread, the store's."""

    def __init__(self, store: Store, layers_of: Callable[[str], Layers] | None = None) -> None:
        """layers_of: the layers of a driver, by default as this command opens it."""
        super().__init__(store.root)
        self._store = store
        self._layers_of = layers_of or store.layers_of or _opener(store)

    def has(self, blob: Descriptor) -> bool:
        """Whether the blob is there with its size, or was dropped and its layer can be mounted."""
        if super().has(blob):
            return True
        try:
            about = Recipe(self.recipe(blob.digest)).about
        except (FileNotFoundError, ImageError):
            return False
        if (about.digest, about.size) != (blob.digest, blob.size):
            return False
        with closing(self._mounted(about.diff_id)) as roots:
            return next(roots, -1) >= 0

    def read(self, digest: str, offset: int = 0) -> Iterator[bytes]:
        """The bytes of a blob in pieces, from offset on. FileNotFoundError at the first; of one that was dropped
        ImageError, and Tampered before the last if it cannot be made again as it was."""
        try:
            yield from super().read(digest, offset)
            return
        except FileNotFoundError:
            pass  # of the file: it may have been dropped
        with self.opened(digest) as pieces:
            yield from pieces(offset)

    @contextmanager
    def opened(self, digest: str) -> Iterator[Callable[[int], Iterator[bytes]]]:
        """A blob that was dropped, while the block lasts: what gives its bytes from an offset on, in any thread.
        FileNotFoundError if it was not; ImageError if its recipe is damaged or no driver has its layer."""
        recipe = Recipe(self.recipe(digest))
        if recipe.about.digest != digest:
            raise ImageError(f"the recipe of archive {digest[:19]} is of another", remedy="cowshed storage repair")
        mounted = self._mounted(recipe.about.diff_id)
        try:
            root = next(mounted)
        except StopIteration:
            raise ImageError(
                f"archive {digest[:19]} was dropped, and no driver has its layer", remedy="pull the image again"
            ) from None
        try:
            yield lambda offset: recipe.packed(root, offset)
        finally:
            mounted.close()

    def _mounted(self, diff_id: str) -> Generator[int]:
        """The roots of the layers of a diff id that can be mounted, each mounted until the next is asked for or this is
        closed."""
        for number, driver in self._holders(diff_id):
            try:
                layers = self._layers_of(driver)
                context = layers.mounted(layers.load(number), read_only=True)
                root = context.__enter__()
            except (CowshedError, StorageError, OSError) as error:
                log.info(f"layer {number} of driver {driver} cannot be read: {error}")
                continue
            try:
                yield root
            finally:
                context.__exit__(None, None, None)

    def _holders(self, diff_id: str, *, durable: bool = False) -> list[tuple[int, str]]:
        """Number and driver of the layers of a diff id, the safest first; durable: those that a power cut leaves."""
        rows = self._store.query(
            "select number, driver, durable, boot_id from layers where diff_id = ? and kind = 'committed' "
            "order by durable desc, boot_id = ? desc, number",
            diff_id, process.boot_id(),
        )  # fmt: skip
        return [(number, driver) for number, driver, safe, _ in rows if safe or not durable]

    # ------------------------------------------------------------ looking

    def fault(self, digest: str) -> str:
        """Why a blob that was dropped cannot be made again, as far as that is told without making it; "" for nothing.
        FileNotFoundError if it was not dropped."""
        try:
            recipe = Recipe(self.recipe(digest))
        except ImageError as error:
            return str(error)
        if recipe.about.digest != digest or not recipe.is_whole():
            return "its recipe is damaged"
        return "" if self._holders(recipe.about.diff_id) else "no driver has its layer"

    def restore(self, digest: str) -> bool:
        """Make a blob again that was dropped, of whichever layer gives it; whether it is there. Its recipe stays.
        NoSpace."""
        try:
            recipe = Recipe(self.recipe(digest))
        except (ImageError, FileNotFoundError):
            return False
        with closing(self._mounted(recipe.about.diff_id)) as roots:
            for root in roots:
                try:
                    with self.create() as new:
                        for piece in recipe.packed(root):
                            new.write(piece)
                        if new.digest() == digest:
                            new.publish()
                            return True
                except ImageError as error:
                    log.info(f"archive {digest[:19]} is not made again: {error}")
        return False

    # ------------------------------------------------------------ dropping

    def fates(self, digests: Iterable[str] | None = None, *, without: Container[str] = ()) -> list[Fate]:
        """What would become of the archives of the images, or of these of them; those that were dropped already are
        left out. Each is compressed again to see whether it comes out the same. without: ids of images that do not
        count."""
        wanted = set(digests) if digests is not None else None
        found: dict[str, Fate] = {}
        for image, _ in images.list_all(self._store):
            for (digest, _, size), diff_id in zip(image.blobs, image.diff_ids, strict=True):
                if image.id in without:
                    continue
                if digest not in found and (wanted is None or digest in wanted) and self.size(digest) == size:
                    found[digest] = self._fate(digest, size, diff_id)
        return list(found.values())

    def _fate(self, digest: str, size: int, diff_id: str) -> Fate:
        if not digest.startswith("sha256:"):
            return Fate(digest, size, diff_id, None, "its digest is none of sha256")
        if not self._holders(diff_id, durable=True):
            return Fate(digest, size, diff_id, None, "no driver holds its layer for good")
        how = packing.find(self.path(digest))
        return Fate(digest, size, diff_id, how, "" if how is not None else "no compressor here gives its bytes")

    def drop(self, wanted: Iterable[Fate]) -> dict[str, int]:
        """Drop archives; by digest, the bytes that came back. Those that cannot be made again after all, and those that
        a running command counts on, stay, and why is logged. NoSpace, OSError: then none is deleted."""
        folder = f"{self._folder}/recipes"
        if not os.path.isdir(folder):
            os.makedirs(folder, mode=0o700, exist_ok=True)
            files.sync_directory(self._folder)
        ready: dict[str, int] = {}
        for fate in wanted:
            if fate.packing is None:
                continue
            try:
                size = self._write_recipe(fate, fate.packing)
            except (ImageError, StorageError, FileNotFoundError) as error:
                log.info(f"archive {fate.digest[:19]} is kept: {error}")
                continue
            if size >= 0:
                ready[fate.digest] = fate.size - size
        if not ready:
            return {}
        step("drop.published")
        files.sync_directory(folder)
        step("drop.synced")
        return self._delete(ready)

    def _write_recipe(self, fate: Fate, how: Packing) -> int:
        """Make the recipe of an archive, and see that it gives it again; its size, -1 if it is not worth it."""
        target = self.recipe(fate.digest)
        about = About(fate.digest, fate.size, fate.diff_id, how)
        mounted = self._mounted(fate.diff_id)
        with NewBlob(f"{self._folder}/partial", lambda digest: target) as new:
            root = next(mounted, -1)
            try:
                if root < 0:
                    raise ImageError("its layer cannot be mounted")
                make(about, decompress(BlobStore.read(self, fate.digest)), root, new.write)
                if new.size >= fate.size:
                    log.info(f"archive {fate.digest[:19]} is kept: its recipe would take {new.size} bytes")
                    return -1
                for _ in Recipe(new.path).packed(root):
                    continue
            finally:
                mounted.close()
            new.sync()  # before: it may take the place of one that another command relies on by now
            step("drop.made")
            new.publish()
        return new.size

    def tidy(self) -> None:
        """Delete the recipes of archives that are there: a command died before it had dropped them, or they were
        fetched again."""
        found = [digest for digest in self.dropped() if self.size(digest) >= 0]
        if not found or not self._store.locks.exclude("blobs"):
            return
        try:
            for digest in found:
                with suppress(FileNotFoundError, ImageError):
                    if Recipe(self.recipe(digest)).about.size == self.size(digest):
                        self.forget(digest)
        finally:
            self._store.locks.let_go("blobs")

    def _delete(self, ready: dict[str, int]) -> dict[str, int]:
        """Delete archives whose recipes are durable, but for those that somebody counts on, and those that no image
        lists any more: of these nobody would look for the recipe."""
        store = self._store
        if not store.locks.exclude("blobs", wait=_WAIT):
            log.info("blobs are in use by another command: no archive is dropped")
            return {}
        try:
            stay = leases.leased(store) | set(images.unused_blobs(store, list(ready)))
            for digest in ready:
                if self.size(digest) < 0 or not os.path.exists(self.recipe(digest)):
                    stay.add(digest)  # another command was faster, and has dropped or kept it
                    continue
                os.unlink(self.recipe(digest) if digest in stay else self.path(digest))
                step("drop.deleted")
        finally:
            store.locks.let_go("blobs")
        return {digest: freed for digest, freed in ready.items() if digest not in stay}


def follow_policy(store: Store, digests: Iterable[str]) -> None:
    """After layers were made of archives: drop them if the configuration says so. An error is told, and the archives
    stay."""
    if not store.drops_archives:
        return
    archives = Archives(store)
    try:
        archives.drop(archives.fates(digests))
    except (CowshedError, StorageError, OSError) as error:
        log.warn(f"archives of layers are kept for now: {error}")


def _opener(store: Store) -> Callable[[str], Layers]:
    """Opens drivers by what the store knows of them."""
    opened: dict[str, Layers] = {}

    def layers_of(name: str) -> Layers:
        from cowshed.layers.driver import open_driver
        from cowshed.layers.layers import Layers

        if name not in opened:
            opened[name] = Layers(store, name, open_driver(store, name, {}))
        return opened[name]

    return layers_of
