"""Pulling: manifest, configuration, then the layers, downloaded side by side and applied in order while they arrive."""

from __future__ import annotations

import hashlib
import threading
import time
from functools import partial

from cowshed.errors import Tampered
from cowshed.image import manifest as manifests
from cowshed.image.blobs import Blobs, Incoming
from cowshed.image.realise import realise
from cowshed.registry.client import Client
from cowshed.state import images
from cowshed.state.rows import ImageRow

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from typing import Any

    from cowshed.image.realise import Source
    from cowshed.image.reference import Reference
    from cowshed.layers.layers import Layers

_PARALLEL = 4


def pull(
    layers: Layers,
    reference: Reference,
    *,
    platform: str,
    registries: Mapping[str, Any],
    durability: str,
    report: Callable[[str], None],
) -> ImageRow:
    """Bring an image into the store and its layers into the driver. Raises RegistryError, ImageError, NoSpace."""
    store = layers.store
    client = Client(reference.registry, registries.get(reference.registry) or {})
    repository = reference.repository
    report(f"{reference.familiar}: asking {reference.registry}")
    data, said = client.manifest(repository, reference.wanted)
    if reference.digest:
        _verify(data, reference.digest, "the manifest")
    value = manifests.document(data, "the manifest")
    kind = manifests.media_type(value, said)
    for _ in range(4):
        if kind in manifests.MANIFESTS:
            break
        chosen = manifests.choose(value, platform)
        data, said = client.manifest(repository, chosen.digest)
        _verify(data, chosen.digest, "the manifest")
        value = manifests.document(data, "the manifest")
        kind = manifests.media_type(value, said)
    parsed = manifests.parse_manifest(value)
    digest = "sha256:" + hashlib.sha256(data).hexdigest()
    config_bytes = b"".join(_bounded(client.blob(repository, parsed.config.digest, 0), parsed.config.size))
    _verify(config_bytes, parsed.config.digest, "the configuration")
    config = manifests.document(config_bytes, "the configuration")
    diff_ids = manifests.diff_ids(config, len(parsed.layers))

    image = ImageRow(
        parsed.config.digest, digest, data, kind, config_bytes, diff_ids, images.chain_ids(diff_ids),
        tuple((d.digest, d.media_type, d.size) for d in parsed.layers),
        "/".join(str(config[k]) for k in ("os", "architecture", "variant") if config.get(k)),
        sum(d.size for d in parsed.layers), manifests.created_ns(config.get("created")), time.time_ns(),
    )  # fmt: skip
    blobs = Blobs(store.root)
    arriving = _Downloads(client, repository, blobs, parsed.layers)
    try:
        arriving.start()
        sources = [arriving.source(n) for n in range(len(parsed.layers))]
        realise(layers, image, sources, names=[reference.name], durability=durability, report=report)
        arriving.finish()
    finally:
        arriving.stop()
    report(f"{reference.familiar}: {digest}")
    return image


def _verify(data: bytes, digest: str, what: str) -> None:
    algorithm, _, wanted = digest.partition(":")
    if hashlib.new(algorithm, data).hexdigest() != wanted:
        raise Tampered(f"{what} does not have the digest {digest}")


def _bounded(chunks: Iterable[bytes], size: int) -> Iterable[bytes]:
    left = min(size, manifests.LIMIT)
    for chunk in chunks:
        left -= len(chunk)
        if left < 0:
            raise Tampered("the configuration is larger than its manifest says")
        yield chunk


class _Downloads:
    """The layers of one image, a few at a time, lowest first."""

    def __init__(self, client: Client, repository: str, blobs: Blobs, layers: tuple[manifests.Descriptor, ...]) -> None:
        self._blobs = blobs
        self._layers = layers
        self._incoming: dict[str, Incoming] = {}
        for layer in layers:
            if layer.digest not in self._incoming and not blobs.has(layer):
                self._incoming[layer.digest] = blobs.receive(layer, partial(client.blob, repository, layer.digest))
        self._queue = list(self._incoming.values())
        self._threads = [threading.Thread(target=self._work) for _ in range(min(_PARALLEL, len(self._queue)))]

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def _work(self) -> None:
        while self._queue:
            try:
                incoming = self._queue.pop(0)
            except IndexError:
                return
            incoming.run()

    def source(self, n: int) -> Source:
        layer = self._layers[n]
        incoming = self._incoming.get(layer.digest)
        return incoming.chunks if incoming is not None else lambda: self._blobs.read(layer.digest)

    def finish(self) -> None:
        for incoming in self._incoming.values():
            incoming.finish()

    def stop(self) -> None:
        self._queue.clear()
        for incoming in self._incoming.values():
            incoming.cancelled = True
        for thread in self._threads:
            if thread.ident is not None:
                thread.join()
        for incoming in self._incoming.values():
            incoming.close()
