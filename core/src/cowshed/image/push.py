"""Pushing: the blobs that the registry lacks, side by side, then the manifest byte for byte as it is kept."""

from __future__ import annotations

import threading
from contextlib import ExitStack
from time import monotonic

from cowshed import words
from cowshed.errors import BadUsage, ImageError, NotFound
from cowshed.image import manifest as manifests
from cowshed.image import together
from cowshed.image.archives import Archives
from cowshed.registry.reach import AS_CONFIGURED
from cowshed.registry.repository import PUSH, Repository
from cowshed.state import images, places
from cowshed.state.leases import Lease
from cowshed.storage.record import record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Any

    from cowshed.image.manifest import Descriptor
    from cowshed.image.progress import Progress
    from cowshed.image.reference import Reference
    from cowshed.registry.reach import Reach
    from cowshed.registry.upload import Source
    from cowshed.state.rows import ImageRow
    from cowshed.state.store import Store

_TOLD = {"there": "Layer already exists", "mounted": "Mounted", "sent": "Pushed"}  # docker's words


@record(frozen=True)
class Pushed:
    """What a push put under one tag."""

    tag: str
    digest: str
    size: int  # bytes of the manifest


def tagged(store: Store, reference: Reference) -> list[tuple[str, ImageRow]]:
    """Every tag that a repository has here, with its image. NotFound for none."""
    prefix = f"{reference.registry}/{reference.repository}:"
    found = [
        (name.removeprefix(prefix), row)
        for (name,) in store.query("select name from tags where name >= ? and name < ? order by name",
                                   prefix, prefix[:-1] + ";")
        if (row := images.by_name(store, name)) is not None
    ]  # fmt: skip
    if not found:
        raise NotFound(f"no image here has a tag of {reference.familiar}", remedy="cowshed images lists them")
    return found


def push(
    store: Store,
    reference: Reference,
    wanted: Sequence[tuple[str, ImageRow]],
    *,
    registries: Mapping[str, Any],
    progress: Progress,
    reach: Reach = AS_CONFIGURED,
) -> tuple[Pushed, ...]:
    """Push images to the repository that reference names, each under its tag.

    registries: the configuration's table of that name; reach: what the command says beside it. Raises
    RegistryError, AuthError, ImageError (a blob is gone), Tampered; then uploads that were begun are cancelled,
    and what has arrived stays for the next push.
    """
    if reference.digest:
        raise BadUsage("an image is pushed under a tag, and not under a digest", remedy="leave the digest away")
    settings = registries.get(reference.registry) or {}
    archives = Archives(store)
    with Repository(reference.registry, reference.repository, settings, actions=PUSH, reach=reach) as there:
        progress.step(f"The push refers to repository [{reference.registry}/{reference.repository}]")
        layers: dict[str, Descriptor] = {}
        small: dict[str, tuple[Descriptor, bytes]] = {}
        for _, image in wanted:
            parsed = manifests.parse_manifest(manifests.document(image.manifest, "the manifest"))
            layers |= {layer.digest: layer for layer in parsed.layers}
            small[parsed.config.digest] = parsed.config, image.config
        foreign = [layer for layer in layers.values() if manifests.is_foreign(layer)]
        for layer in foreign:  # their licences forbid to pass them on (image-spec layer.md)
            progress.step(f"{layer.digest[7:19]}: Skipped foreign layer")
            del layers[layer.digest]
        with Lease(store, layers), ExitStack() as opened:
            sources = {digest: _source(archives, layer, opened) for digest, layer in layers.items()}
            sending = _Sending(store, sources, there, list(layers.values()), progress)
            try:
                sending.run()
            finally:
                places.remember(store, reference.registry, reference.repository, sending.arrived)
        for config, data in small.values():
            there.send(config, lambda at, data=data: (data[at:],))  # type: ignore[misc]
        tags: dict[str, list[str]] = {}
        for tag, image in wanted:
            tags.setdefault(image.id, []).append(tag)
        named = {image.id: image for _, image in wanted}
        for id_, image in named.items():
            there.put_manifest(image.manifest, image.media_type, tag=tags[id_][0], more_tags=tags[id_][1:])
        return tuple(Pushed(tag, image.manifest_digest, len(image.manifest)) for tag, image in wanted)


class _Sending:
    """The layers of a push, a few at a time. The first error ends them all."""

    def __init__(
        self, store: Store, sources: Mapping[str, Source], there: Repository, layers: list[Descriptor],
        progress: Progress,
    ) -> None:  # fmt: skip
        self._sources, self._there, self._progress = sources, there, progress
        self._queue = [
            (layer, places.mountable(store, there.registry, there.repository, layer.digest)) for layer in layers
        ]
        self._guard = threading.Lock()
        self._bytes = dict.fromkeys(_TOLD, 0)
        self.arrived: list[str] = []

    def run(self) -> None:
        """Until all are there; raises the first error."""
        since = monotonic()
        together.each(self._queue, self._send, abort=self._there.abort, name="upload")
        took = monotonic() - since
        sent = self._bytes["sent"]
        parts = [f"sent {words.size(sent)}" + (f" ({words.size(sent / took)}/s)" if sent and took else "")]
        if self._bytes["mounted"]:
            parts.append(f"{words.size(self._bytes['mounted'])} were in other repositories")
        if self._bytes["there"]:
            parts.append(f"{words.size(self._bytes['there'])} were there")
        self._progress.step(", ".join(parts))

    def _send(self, item: tuple[Descriptor, Sequence[str]]) -> None:
        layer, mount = item
        key, name = layer.digest, layer.digest[7:19]
        begun = False

        def told(sent: int) -> None:
            nonlocal begun
            if not begun:
                begun = True
                self._progress.begin(key, name, layer.size)
            self._progress.advance(key, sent)

        try:
            how = self._there.send(layer, self._sources[layer.digest], mount=mount, told=told)
        finally:
            self._progress.end(key)
        self._progress.step(f"{name}: {_TOLD[how]}")
        with self._guard:
            self._bytes[how] += layer.size
            self.arrived.append(key)


def _source(archives: Archives, layer: Descriptor, opened: ExitStack) -> Source:
    """Where a layer's bytes come from, for another thread to read: what is to be closed goes into opened."""
    if archives.size(layer.digest) == layer.size:
        return archives.path(layer.digest)
    try:
        return opened.enter_context(archives.opened(layer.digest))
    except (FileNotFoundError, ImageError) as error:
        why = str(error) if isinstance(error, ImageError) else f"blob {layer.digest[:19]} is gone"

        def gone(at: int) -> Any:
            raise ImageError(f"{why}, and the registry does not have it", remedy="pull the image again")

        return gone
