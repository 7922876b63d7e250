"""Pulling: manifest, configuration, then the layers, downloaded side by side and applied in order while they arrive."""

from __future__ import annotations

import threading
from functools import partial
from time import monotonic

from cowshed import words
from cowshed.errors import BadUsage, CowshedError, NoSpace, NotFound
from cowshed.image import platform as platforms
from cowshed.image.archives import Archives, follow_policy
from cowshed.image.blobs import BlobStore
from cowshed.image.realise import Kept, realise
from cowshed.image.resolve import resolve, resolve_all
from cowshed.image.sparing import Sparing
from cowshed.registry.reach import AS_CONFIGURED
from cowshed.state import images, places
from cowshed.state.leases import Lease
from cowshed.state.origins import OriginRow
from cowshed.storage.record import record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from types import TracebackType
    from typing import Any

    from cowshed.image.incoming import Incoming
    from cowshed.image.manifest import Descriptor
    from cowshed.image.platform import Platform
    from cowshed.image.progress import Progress
    from cowshed.image.realise import Source
    from cowshed.image.reference import Reference
    from cowshed.image.resolve import Origin, Resolved
    from cowshed.layers.layers import Layers
    from cowshed.registry.client import Client
    from cowshed.registry.reach import Reach
    from cowshed.state.rows import ImageRow
    from cowshed.state.store import Store
    from cowshed.trust.gate import Gate

POLICIES = ("always", "missing", "never")
_PARALLEL = 4  # blobs at a time
_CONNECTIONS = 6  # for all of them
_PATIENCE = 5.0  # seconds to wait for others that look at blobs


@record(frozen=True)
class Pulled:
    """What a pull brought."""

    image: ImageRow
    digest: str  # of what the name stands for: the index, if there is one
    new: bool  # whether the name stood for something else before


@record(frozen=True)
class Brought:
    """Bytes of layers that were downloaded, that a broken pull had left, and that were here."""

    fetched: int
    resumed: int
    here: int


def pull(
    layers: Layers,
    reference: Reference,
    *,
    registries: Mapping[str, Any],
    durability: str,
    progress: Progress,
    platform: Platform | None = None,
    policy: str = "always",
    gate: Gate | None,
    reach: Reach = AS_CONFIGURED,
) -> Pulled:
    """Bring an image into the store and its layers into the driver.

    registries: the configuration's table of that name. platform: None for this machine's. policy: `always` asks the
    registry, `missing` only if no image has the name, `never` does not. gate: what an image has to pass before anything
    of it is stored (`cowshed.trust.gate`), None for nothing. reach: what the command says of the registry. Raises
    NotFound, RegistryError, AuthError, Untrusted, ConfigError, ImageError, Tampered, NoSpace; then nothing is
    left but what a repetition goes on from.
    """
    if policy not in POLICIES:
        raise BadUsage(f"the pull policy is one of {', '.join(POLICIES)}, not {policy!r}")
    store = layers.store
    there = images.by_name(store, reference.name)
    if policy != "always":
        if there is not None:
            return Pulled(there, there.manifest_digest, False)
        if policy == "never":
            raise NotFound(f"no such image: {reference.familiar}", remedy="pull it, or allow it to be pulled")
    from cowshed.registry.client import Client  # not for `load`, which asks no registry

    if gate is not None:
        gate.before(reference)
    progress.step(f"{reference.familiar}: asking {reference.registry}")
    settings = registries.get(reference.registry) or {}
    begun = monotonic()
    with Client(reference.registry, reference.repository, settings, reach=reach) as client:
        asked = Sparing(store, client, reference)
        found = resolve(store, asked, reference.wanted, digest=reference.digest, platform=platform, progress=progress)
        origin = origin_of(client, reference, found, gate)
        brought = bring(layers, client, found, names=[reference.name], durability=durability, progress=progress,
                        abort=client.abort, came=origin)  # fmt: skip
    progress.step(_summary(brought, monotonic() - begun))
    places.remember(store, reference.registry, reference.repository, (layer.digest for layer in found.manifest.layers))
    return Pulled(found.image, found.digest, there is None or there.id != found.image.id)


def pull_all(
    layers: Layers, reference: Reference, *, registries: Mapping[str, Any], durability: str, progress: Progress,
    gate: Gate | None, reach: Reach = AS_CONFIGURED,
) -> tuple[Pulled, ...]:  # fmt: skip
    """Bring the images of all platforms that a name stands for, the one for this machine first.

    That one gets the name, if there is one, else the first of the index; the others are named by their digests. Raises
    as `pull` does; images that were complete by then stay.
    """
    from cowshed.registry.client import Client

    store = layers.store
    there = images.by_name(store, reference.name)
    if gate is not None:
        gate.before(reference)
    progress.step(f"{reference.familiar}: asking {reference.registry}")
    settings = registries.get(reference.registry) or {}
    done = []
    with Client(reference.registry, reference.repository, settings, reach=reach) as client:
        asked = Sparing(store, client, reference)
        found = resolve_all(store, asked, reference.wanted, digest=reference.digest, progress=progress)
        best = platforms.best()
        ranks = [(platforms.rank(platforms.parse(each.image.platform), best), n) for n, each in enumerate(found)]
        _, main = min(((rank, n) for rank, n in ranks if rank is not None), default=(0, 0))
        for each in (found[main], *found[:main], *found[main + 1 :]):
            named = each is found[main]
            by_digest = f"{reference.registry}/{reference.repository}@{each.image.manifest_digest}"
            begun = monotonic()
            progress.step(f"{each.image.platform}: {each.image.manifest_digest[7:19]}")
            origin = origin_of(client, reference, each, gate)
            brought = bring(
                layers, client, each, names=[reference.name if named else by_digest], durability=durability,
                progress=progress, abort=client.abort, came=origin,
            )  # fmt: skip
            progress.step(_summary(brought, monotonic() - begun))
            blobs = (layer.digest for layer in each.manifest.layers)
            places.remember(store, reference.registry, reference.repository, blobs)
            new = there is None or there.id != each.image.id
            done.append(Pulled(each.image, each.digest, named and new))
    return tuple(done)


def origin_of(client: Client, reference: Reference, found: Resolved, gate: Gate | None) -> OriginRow:
    """What is written down of where a resolved image comes from, if the gate lets it pass. Untrusted, ConfigError."""
    evidence: list[list[str]] = []
    if gate is not None and (signatures := gate.arriving(client, reference, found)):
        from cowshed.trust.signature import pack

        evidence = pack(signatures)
    return OriginRow(reference.name, found.digest, found.image.manifest_digest, evidence)


def bring(
    layers: Layers,
    origin: Origin,
    found: Resolved,
    *,
    names: Sequence[str],
    durability: str,
    progress: Progress,
    abort: Callable[[], None] = lambda: None,
    prepare: Callable[[], bool] = lambda: False,
    came: OriginRow | None = None,
    anew: bool = False,
) -> Brought:
    """Download what is missing of a resolved image and realise it. came: the registry's name that it has, None if it is
    from none. abort() ends the origin's transfers at once;
    prepare() is called when the blobs are leased, to put in place what is here already: whether that was anything.
    anew: archives that were dropped are brought again, as that costs little."""
    store = layers.store
    blobs = BlobStore(store.root) if anew else Archives(store)
    blobs.prune_partials()
    wanted = found.manifest.layers
    try:
        with Lease(store, (layer.digest for layer in wanted)):
            blobs.open_for_sync()
            new = prepare()
            with Downloads(blobs, origin, wanted, progress, abort) as downloads:

                def ready(synced: bool) -> None:
                    downloads.wait()
                    if durability == "commit" and (new or downloads.count) and not synced:
                        blobs.sync()

                downloads.start()
                sources = [downloads.source(layer, found.image.id) for layer in wanted]
                try:
                    realise(
                        layers, found.image, sources, names=names, digest=found.digest,
                        durability=durability, progress=progress, ready=ready, came=came, indexes=found.indexes,
                    )  # fmt: skip
                except Exception as error:
                    downloads.cancel()
                    if downloads.error is not None and downloads.error is not error:
                        raise downloads.error from None  # what went wrong first, not that the others were cancelled
                    raise
                brought = downloads.brought()
        follow_policy(store, [layer.digest for layer in wanted])
        return brought
    finally:
        blobs.close()
        _collect(blobs, store)


def _summary(brought: Brought, took: float) -> str:
    """What came, how fast, and what need not come."""
    parts = []
    if brought.fetched:
        parts.append(f"downloaded {words.size(brought.fetched)} ({words.size(brought.fetched / took)}/s)")
    if brought.resumed:
        parts.append(f"{words.size(brought.resumed)} were left by an earlier pull")
    if brought.here or not parts:
        parts.append(f"{words.size(brought.here)} were here")
    return ", ".join(parts)


def _collect(blobs: BlobStore, store: Store) -> None:
    """Delete what nobody counts on any more: what this pull brought if it failed, what an earlier one left when it was
    killed, other archives of the same layers that the image had before."""
    try:
        if store.query("select exists (select 1 from loose_blobs)")[0][0]:
            blobs.collect(store, wait=_PATIENCE)
    except (CowshedError, OSError):
        return  # the pull has succeeded, or has an error of its own to tell; they stay loose for the next command


class Downloads:
    """The missing layers of one image, a few at a time, lowest first. The first error ends them all."""

    def __init__(
        self, blobs: BlobStore, origin: Origin, layers: Iterable[Descriptor], progress: Progress,
        abort: Callable[[], None],
    ) -> None:  # fmt: skip
        self._blobs, self._progress, self._abort = blobs, progress, abort
        self._incoming: dict[str, Incoming] = {}
        self._here = 0
        self._spare = threading.Semaphore(_CONNECTIONS)
        part: Callable[[Descriptor, int, int], tuple[bool, Iterable[bytes]]] | None = getattr(origin, "part", None)
        for layer in {layer.digest: layer for layer in layers}.values():
            if blobs.has(layer):
                self._here += layer.size
            else:
                self._incoming[layer.digest] = blobs.receive(
                    layer, partial(origin.blob, layer), partial(part, layer) if part else None, self._spare
                )
        self._queue = list(self._incoming.values())
        self.count = len(self._queue)
        self.error: BaseException | None = None
        self._guard = threading.Lock()
        self._threads = [
            threading.Thread(target=self._work, name="download") for _ in range(min(_PARALLEL, self.count))
        ]

    def start(self) -> None:
        """NoSpace if it cannot end well."""
        needed, free = sum(i.blob.size for i in self._queue), self._blobs.free()
        if needed > free:
            raise NoSpace(f"the layers to download have {needed} bytes, and {free} are free",
                          remedy="cowshed rmi, or free space")  # fmt: skip
        for thread in self._threads:
            thread.start()

    def _work(self) -> None:
        while True:
            with self._guard:
                if not self._queue or self.error is not None:
                    return
                incoming = self._queue.pop(0)
            digest = incoming.blob.digest
            self._progress.begin(digest, digest[7:19], incoming.blob.size)
            with self._spare:
                incoming.run(partial(self._progress.advance, digest))
            self._progress.end(digest)
            try:
                incoming.wait()
            except BaseException as error:
                self._failed(error)

    def _failed(self, error: BaseException) -> None:
        with self._guard:
            if self.error is not None:
                return
            self.error = error
        self.cancel()

    def source(self, layer: Descriptor, image_id: str) -> Source:
        return self._incoming.get(layer.digest) or Kept(self._blobs, layer.digest, image_id)

    def wait(self) -> None:
        """Until every blob is whole and published; raises the first error."""
        for incoming in self._incoming.values():
            incoming.wait()

    def brought(self) -> Brought:
        """What came, once all is there."""
        resumed = sum(incoming.resumed for incoming in self._incoming.values())
        return Brought(sum(i.blob.size for i in self._incoming.values()) - resumed, resumed, self._here)

    def cancel(self) -> None:
        with self._guard:
            self._queue.clear()
        for incoming in self._incoming.values():
            incoming.cancel()
        self._abort()

    def __enter__(self) -> Downloads:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None:
            self.cancel()
        for thread in self._threads:
            if thread.ident is not None:
                thread.join()
        for incoming in self._incoming.values():
            incoming.close()


def known(store: Store, reference: Reference) -> ImageRow | None:
    """The image that a name stands for here, or that has the digest."""
    found = images.by_name(store, reference.name)
    if found is None and reference.digest:
        found = images.by_digest(store, reference.digest)
    return found
