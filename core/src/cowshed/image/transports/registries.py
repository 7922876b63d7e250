"""Repositories of registries as sources and targets of copies."""

from __future__ import annotations

from cowshed.errors import BadUsage
from cowshed.image import manifest as manifests
from cowshed.image.transports.graph import describe
from cowshed.registry.client import Client
from cowshed.registry.reach import AS_CONFIGURED
from cowshed.registry.repository import PULL, PUSH, Repository

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from typing import Any

    from cowshed.image.manifest import Descriptor
    from cowshed.image.reference import Reference
    from cowshed.image.transports.graph import Root
    from cowshed.registry.reach import Reach


class RegistrySource:
    """A repository, read, from mirrors too. A context manager."""

    def __init__(self, reference: Reference, registries: Mapping[str, Any], reach: Reach = AS_CONFIGURED) -> None:
        self._reference, self._reach = reference, reach
        self._settings = registries.get(reference.registry) or {}
        self._client = Client(reference.registry, reference.repository, self._settings, reach=reach)
        self._known: dict[str, bytes] = {}  # what was asked for by its name

    def __enter__(self) -> RegistrySource:
        return self

    def __exit__(self, *_: object) -> None:
        self._client.close()

    def abort(self) -> None:
        self._client.abort()

    def root(self) -> Descriptor:
        """What the reference names. NotFound, RegistryError, ImageError."""
        data, said = self._client.manifest(self._reference.wanted)
        found = describe(data, said, self._reference.digest)
        self._known[found.digest] = data
        return found

    def document(self, wanted: Descriptor) -> bytes:
        return self._known.get(wanted.digest) or self._client.manifest(wanted.digest)[0]

    def blob(self, blob: Descriptor, offset: int = 0) -> Iterable[bytes]:
        return self._client.blob(blob, offset)

    def referrers(self, subject: Descriptor) -> list[Descriptor]:
        of = self._reference
        with Repository(of.registry, of.repository, self._settings, actions=PULL, reach=self._reach) as there:
            listed = there.referrers(subject.digest)
        return [manifests.descriptor(entry, "a referrer") for entry in listed]


class RegistryTarget:
    """A repository, written. A context manager; uploads that were begun are cancelled on an error."""

    side_by_side = True

    def __init__(
        self, reference: Reference, registries: Mapping[str, Any], *, mount: tuple[str, str] = ("", ""),
        reach: Reach = AS_CONFIGURED,
    ) -> None:  # fmt: skip
        """mount: registry and repository that the blobs come from. BadUsage for a digest."""
        if reference.digest:
            raise BadUsage("an image is copied to a tag, and not to a digest", remedy="write docker://NAME:TAG")
        self._tag = reference.tag
        self._mount = (mount[1],) if mount[0] == reference.registry else ()
        settings = registries.get(reference.registry) or {}
        self._there = Repository(reference.registry, reference.repository, settings, actions=PUSH, reach=reach)
        self._documents: dict[str, tuple[bytes, str]] = {}

    def __enter__(self) -> RegistryTarget:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None:
            self._there.abort()
        self._there.close()

    def abort(self) -> None:
        self._there.abort()

    def has(self, blob: Descriptor) -> bool:
        """A layer that may not be passed on counts as one that is there: it is pulled from its `urls`."""
        return manifests.is_foreign(blob) or self._there.has(blob)

    def blob(self, blob: Descriptor, pieces: Callable[[int], Iterable[bytes]]) -> None:
        self._there.send(blob, pieces, mount=self._mount, look=False)

    def document(self, wanted: Descriptor, data: bytes) -> None:
        self._documents[wanted.digest] = data, wanted.media_type
        self._there.put_manifest(data, wanted.media_type, digest=wanted.digest)

    def finish(self, roots: Iterable[Root]) -> None:
        """Give the image its tag, last."""
        for root in roots:
            data, kind = self._documents[root.target.digest]
            self._there.put_manifest(data, kind, tag=self._tag, digest=root.target.digest)
