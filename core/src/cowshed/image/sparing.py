"""Pulling again what is here: documents that the store has are not fetched a second time."""

from __future__ import annotations

from cowshed.state import indexes

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

    from cowshed.image.manifest import Descriptor
    from cowshed.image.reference import Reference
    from cowshed.registry.client import Client
    from cowshed.state.store import Store


class Sparing:
    """A repository as `resolve` reads it, but for manifests and indexes that the store has.

    Registries limit how often a manifest is fetched, and not how often HEAD asks what a name stands for. HEAD comes
    first only where it can save the other: where the store has what the name stood for the last time. So a first pull
    asks no more than before. What HEAD tells is a digest and nothing else: what has it is the store's, verified, and
    if the store has nothing of that digest, or HEAD tells none, the document is fetched.
    """

    def __init__(self, store: Store, client: Client, reference: Reference) -> None:
        self._store, self._client, self._reference = store, client, reference

    def manifest(self, wanted: str) -> tuple[bytes, str]:
        digest = self._told() if wanted == self._reference.wanted else wanted
        return (indexes.document(self._store, digest) if digest else None) or self._client.manifest(wanted)

    def blob(self, blob: Descriptor, offset: int = 0) -> Iterable[bytes]:
        return self._client.blob(blob, offset)

    def _told(self) -> str:
        """The registry has to say itself what the name stands for, also where the name is a digest: that an image is
        here does not mean that it is there, or that we may have it."""
        before = indexes.stood_for(self._store, self._reference.name)
        if not before or indexes.document(self._store, before) is None:
            return ""
        told = self._client.head(self._reference.wanted)
        return told if told == (self._reference.digest or told) else ""
