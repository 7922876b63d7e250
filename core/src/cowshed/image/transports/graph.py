"""Copying images as graphs of documents and blobs: what an index or a manifest names comes before it, each once.

Documents are copied as their bytes are, of unknown types too; everything is held against its size and digest.
"""

from __future__ import annotations

import hashlib
from contextlib import ExitStack
from functools import partial

from cowshed import digests
from cowshed.errors import ImageError, Tampered
from cowshed.image import manifest as manifests
from cowshed.image import platform as platforms
from cowshed.image import together
from cowshed.image.manifest import INDEXES, MANIFESTS, Descriptor
from cowshed.image.resolve import verify
from cowshed.storage.record import record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from typing import Any, Protocol

    from cowshed.image.platform import Platform
    from cowshed.image.progress import Progress

    class Source(Protocol):
        def document(self, wanted: Descriptor) -> bytes:
            """The bytes of a manifest or index; the caller verifies them."""

        def blob(self, blob: Descriptor, offset: int = 0) -> Iterable[bytes]:
            """The bytes of a blob; the caller verifies them. In any thread: a source that cannot do that has a `reader`
            (see below). One that may keep its reader waiting has an `abort`, which ends that."""

        def referrers(self, subject: Descriptor) -> list[Descriptor]:
            """The manifests that name this one as their subject: signatures, bills of material."""

    class Target(Protocol):
        """One that may be kept waiting has an `abort`, which ends that."""

        @property
        def side_by_side(self) -> bool:
            """Whether `has` and `blob` may be called in several threads at once."""

        def has(self, blob: Descriptor) -> bool:
            """Whether a blob is there already."""

        def blob(self, blob: Descriptor, pieces: Callable[[int], Iterable[bytes]]) -> None:
            """Take a blob; pieces(offset) gives its bytes from there on. What it raises means that they are not
            sound."""

        def document(self, wanted: Descriptor, data: bytes) -> None:
            """Take a document, all that it names being there."""


_DEPTH = 4  # of indexes within indexes, and of referrers of referrers
_DOCUMENTS = 10_000


@record(frozen=True)
class Root:
    """An image to copy."""

    target: Descriptor
    names: tuple[str, ...]  # canonical, or whatever the target takes


def copy(
    source: Source,
    target: Target,
    roots: Iterable[Root],
    *,
    progress: Progress,
    every: bool = True,
    platform: Platform | None = None,
    referrers: bool = False,
) -> tuple[Root, ...]:
    """Copy images, and give what they are at the target: of an index unless every, the manifest for the platform (None:
    this machine's) alone. referrers: also what names one of the copied documents as its subject.

    Raises Tampered, ImageError, and what source and target raise.
    """
    work = _Copying(source, target, progress, referrers)
    done = []
    for root in roots:
        chosen = root.target if every else choose(source, root.target, platform)
        work.tree(chosen, 0)
        done.append(Root(chosen, root.names))
    return tuple(done)


def choose(source: Source, wanted: Descriptor, platform: Platform | None) -> Descriptor:
    """The manifest for a platform that an index leads to; what is no index stays."""
    for _ in range(_DEPTH):
        if wanted.media_type not in INDEXES:
            return wanted
        value = manifests.document(read(source, wanted), "the index")
        wanted = manifests.choose(value, platform or platforms.best())
    raise ImageError(f"the image's indexes lie more than {_DEPTH} deep")


def read(source: Source, wanted: Descriptor) -> bytes:
    """A document, verified."""
    if wanted.size > manifests.LIMIT:
        raise ImageError(f"the manifest has {wanted.size} bytes; {manifests.LIMIT} are allowed")
    data = source.document(wanted)
    if len(data) != wanted.size:
        raise Tampered(f"the manifest {wanted.digest[:19]} has {len(data)} bytes, and {wanted.size} are said")
    verify(data, wanted.digest, "the manifest")
    return data


def reader(source: Source, blob: Descriptor, opened: ExitStack) -> Callable[[int], Iterable[bytes]]:
    """What gives the bytes of a blob from an offset on, in any thread, until `opened` is closed."""
    own: Callable[[Descriptor, ExitStack], Callable[[int], Iterable[bytes]]] | None = getattr(source, "reader", None)
    return own(blob, opened) if own is not None else partial(source.blob, blob)


def describe(data: bytes, said: str = "", digest: str = "") -> Descriptor:
    """The descriptor of a document whose bytes are here. digest: its name, if it is another than that by sha256."""
    value = manifests.document(data, "the manifest")
    kind = manifests.media_type(value, said)
    return Descriptor(digest or "sha256:" + hashlib.sha256(data).hexdigest(), len(data), kind)


def named(value: dict[str, Any], kind: str) -> tuple[list[Descriptor], list[Descriptor]]:
    """(documents, blobs) that a manifest or index names, of whatever types they are."""
    if kind in INDEXES:
        listed = value.get("manifests")
        if not isinstance(listed, list) or len(listed) > _DOCUMENTS:
            raise ImageError("the index has no list of manifests, or too long a one")
        return [manifests.descriptor(entry, f"entry {n + 1} of the index") for n, entry in enumerate(listed)], []
    if kind not in MANIFESTS:
        return [], []
    layers = value.get("layers") or []
    if not isinstance(layers, list) or len(layers) > manifests.LAYERS:
        raise ImageError("the manifest has no list of layers, or too long a one")
    found = [manifests.descriptor(value.get("config"), "the manifest's configuration")]
    return [], found + [manifests.descriptor(layer, f"layer {n + 1}") for n, layer in enumerate(layers)]


class _Copying:
    def __init__(self, source: Source, target: Target, progress: Progress, referrers: bool) -> None:
        self._source, self._target, self._progress = source, target, progress
        self._referrers = referrers
        self._done: set[str] = set()
        self._over = False

    def tree(self, wanted: Descriptor, depth: int) -> None:
        if wanted.digest in self._done:
            return
        if depth > 2 * _DEPTH or len(self._done) > _DOCUMENTS:
            raise ImageError("the image's indexes lie too deep, or are too many")
        self._done.add(wanted.digest)
        data = read(self._source, wanted)
        value = manifests.document(data, "the manifest")
        kind = wanted.media_type
        if kind in (*MANIFESTS, *INDEXES, ""):
            kind = manifests.media_type(value, kind)
        documents, blobs = named(value, kind)
        for each in documents:
            self.tree(each, depth + 1)
        self._blobs(blobs)
        self._target.document(Descriptor(wanted.digest, wanted.size, kind or wanted.media_type), data)
        if self._referrers:
            for each in self._source.referrers(wanted):
                self.tree(each, depth + 2)

    def _blobs(self, blobs: Iterable[Descriptor]) -> None:
        """Those that did not come yet, several at once where the target can take them so."""
        wanted = {blob.digest: blob for blob in blobs if blob.digest not in self._done}
        self._done.update(wanted)
        if not self._target.side_by_side:
            for blob in wanted.values():
                with ExitStack() as stack:
                    self._blob((blob, reader(self._source, blob, stack)))
            return
        with ExitStack() as stack:
            items = [(blob, reader(self._source, blob, stack)) for blob in wanted.values()]
            together.each(items, self._blob, abort=self._abort, name="copy")

    def _abort(self) -> None:
        self._over = True
        for end in (self._source, self._target):
            getattr(end, "abort", lambda: None)()

    def _blob(self, item: tuple[Descriptor, Callable[[int], Iterable[bytes]]]) -> None:
        blob, read_from = item
        short = blob.digest.partition(":")[2][:12]
        if self._target.has(blob):
            self._progress.step(f"{short}: already there")
            return
        self._progress.begin(blob.digest, short, blob.size)
        self._target.blob(blob, partial(self._pieces, blob, read_from))
        self._progress.end(blob.digest)

    def _pieces(
        self, blob: Descriptor, read_from: Callable[[int], Iterable[bytes]], offset: int
    ) -> Iterable[bytes]:  # fmt: skip
        if offset:  # what comes before went to the target earlier, which looks at the whole itself
            return read_from(offset)
        return verified(blob, read_from(0), partial(self._told, blob.digest))

    def _told(self, digest: str, done: int) -> None:
        if self._over:
            raise ImageError("the copy was cancelled")
        self._progress.advance(digest, done)


def verified(
    blob: Descriptor, pieces: Iterable[bytes], told: Callable[[int], None] = lambda done: None
) -> Iterator[bytes]:
    """The same bytes; Tampered before the last of them, so that nobody has it whole, if they are not the blob's."""
    algorithm, _, wanted = blob.digest.partition(":")
    digest = digests.new(algorithm)
    at = 0
    for piece in pieces:
        at += len(piece)
        digest.update(piece)
        if at > blob.size or (at == blob.size and digest.hexdigest() != wanted):
            break
        told(at)
        yield piece
    if at != blob.size or digest.hexdigest() != wanted:
        raise Tampered(
            f"blob {blob.digest[:19]} of {blob.size} bytes has other bytes than it is named for",
            remedy="the source is damaged; of the store, cowshed storage check --deep tells more",
        )
