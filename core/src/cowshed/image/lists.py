"""Indexes of images for several platforms, put together here and pushed (image-spec image-index.md).

A list is kept by name: its index, and for each entry where the manifest is: in this store, or in a repository of a
registry. Nothing is copied before it is pushed.
"""

from __future__ import annotations

import json
from contextlib import ExitStack

from cowshed.errors import BadUsage, Conflict, ImageError, NotFound
from cowshed.image import manifest as manifests
from cowshed.image import reference
from cowshed.image.archives import Archives
from cowshed.image.manifest import DOCKER_LIST, INDEXES, OCI_INDEX, Descriptor
from cowshed.image.transports import graph, names, stored
from cowshed.registry.reach import AS_CONFIGURED
from cowshed.state import images, lists
from cowshed.state.leases import Lease
from cowshed.storage.record import record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from typing import Any

    from cowshed.engine import Engine
    from cowshed.image.progress import Progress
    from cowshed.image.transports.graph import Source
    from cowshed.registry.reach import Reach

_HERE = ""  # what is written of an entry whose manifest is in this store


@record(frozen=True)
class Said:
    """What a user says of an entry's platform; "" leaves it as it is."""

    os: str = ""
    architecture: str = ""
    variant: str = ""
    os_version: str = ""
    features: tuple[str, ...] = ()
    os_features: tuple[str, ...] = ()
    annotations: Mapping[str, str] = {}


def registry_of(text: str) -> str:
    """The registry that an image is asked for at if it is not here. BadUsage."""
    place = names.parse(text) if text.partition(":")[0] in names.KNOWN and ":" in text else None
    told = place.reference if place is not None else reference.parse(text)
    return told.registry if told is not None else ""


def canonical(name: str) -> str:
    """The name of a list. BadUsage."""
    parsed = reference.parse(name)
    if parsed.digest:
        raise BadUsage(f"{name!r} names a digest, and a list has a name", remedy="write NAME[:TAG]")
    return parsed.name


def create(
    engine: Engine,
    name: str,
    added: Sequence[str],
    *,
    amend: bool = False,
    every: bool = False,
    annotations: Mapping[str, str] | None = None,
    reach: Reach = AS_CONFIGURED,
) -> None:
    """Begin a list. amend: one that is there gets more. reach: what the command says of the images' registry. Conflict,
    and what `add` raises; then nothing is changed."""
    key = canonical(name)
    there = lists.get(engine.store, key)
    if there is not None and not amend:
        raise Conflict(f"there is a list {reference.familiar(key)}", remedy="use --amend, or cowshed manifest rm it")
    document = there or {"index": {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": []}, "from": {}}
    if annotations:
        document["index"]["annotations"] = {**document["index"].get("annotations", {}), **annotations}
    for image in added:
        _add(engine, document, image, every=every, said=Said(), reach=reach)
    _keep(engine, key, document)


def add(engine: Engine, name: str, image: str, *, every: bool, said: Said, reach: Reach = AS_CONFIGURED) -> str:
    """Add an image of this store, or of a registry if there is none of that name here; the digest of what was added
    last. every: all platforms of an index, else this machine's. reach: what the command says of its registry.
    NotFound, ImageError, RegistryError."""
    key, document = _list(engine, name)
    digest = _add(engine, document, image, every=every, said=said, reach=reach)
    _keep(engine, key, document)
    return digest


def annotate(engine: Engine, name: str, image: str, said: Said) -> None:
    """Change what is said of an entry, named by digest or as it was added; of the index itself if image is ""."""
    key, document = _list(engine, name)
    if image:
        _say(_entry(engine, document, image), said)
    else:
        index = document["index"]
        index["annotations"] = {**index.get("annotations", {}), **said.annotations}
    _keep(engine, key, document)


def remove_entry(engine: Engine, name: str, image: str) -> str:
    """Take an entry out; its digest."""
    key, document = _list(engine, name)
    entry = _entry(engine, document, image)
    document["index"]["manifests"].remove(entry)
    document["from"].pop(entry["digest"], None)
    _keep(engine, key, document)
    return str(entry["digest"])


def remove(engine: Engine, name: str) -> None:
    """Forget a list. NotFound."""
    key = canonical(name)
    with engine.store.transaction() as tx:
        if not lists.delete(tx, key):
            raise _none(name)


def index(engine: Engine, name: str) -> dict[str, Any] | None:
    """The index of a list, None if there is none of that name."""
    found = lists.get(engine.reader, canonical(name))
    return found["index"] if found is not None else None


def show(engine: Engine, text: str, progress: Progress, reach: Reach = AS_CONFIGURED) -> dict[str, Any]:
    """What a name stands for: a list here, an image here, else what a registry has. reach: what the command says of
    the registry."""
    found = index(engine, text) if "@" not in text and "://" not in text else None
    if found is not None:
        return found
    with ExitStack() as opened:
        source, wanted, _ = _find(engine, text, opened, progress, reach)
        return manifests.document(graph.read(source, wanted), "the manifest")


def push(
    engine: Engine, name: str, goal: str, *, docker: bool, progress: Progress, reach: Reach = AS_CONFIGURED
) -> Descriptor:
    """Copy a list, and all that it names, to a place (`cowshed.image.transports.names`), by default to the registry
    that its name names; what is there then. docker: as docker's manifest list. reach: what the command says of that
    registry, which also counts for the images that come from there."""
    from cowshed.image.copying import transfer

    key, document = _list(engine, name)
    goal = goal or f"docker://{key}"
    if goal.partition(":")[0] not in names.KNOWN:
        goal = f"docker://{reference.parse(goal).name}"
    value = dict(document["index"])
    if not value["manifests"]:
        raise ImageError(f"the list {reference.familiar(key)} is empty", remedy="cowshed manifest add")
    if docker:
        value["mediaType"] = DOCKER_LIST
    data = json.dumps(value, separators=(",", ":")).encode()
    with ExitStack() as opened:
        place = names.parse(goal)
        there = place.reference.registry if place.reference is not None else ""
        source = _Source(engine, data, document["from"], opened, progress, (there, reach))
        return transfer(
            engine, source, graph.describe(data), place, opened, every=True, progress=progress, reach=reach
        )  # fmt: skip


class _Source:
    """A list with all that its entries name, wherever that is."""

    def __init__(
        self, engine: Engine, data: bytes, origins: dict[str, str], opened: ExitStack, progress: Progress,
        reaches: tuple[str, Reach],
    ) -> None:  # fmt: skip
        """reaches: a registry, and what the command says of it."""
        self._reaches = reaches
        self._engine, self._data, self._opened, self._progress = engine, data, opened, progress
        self._origins = origins
        self._root = graph.describe(data).digest
        self._sources: dict[str, Source] = {}
        self._now: Source | None = None

    def document(self, wanted: Descriptor) -> bytes:
        if wanted.digest == self._root:
            return self._data
        if wanted.digest in self._origins:  # what comes next belongs to it
            self._now = self._source(self._origins[wanted.digest], wanted.digest)
        assert self._now is not None
        return self._now.document(wanted)

    def blob(self, blob: Descriptor, offset: int = 0) -> Iterable[bytes]:
        assert self._now is not None
        return self._now.blob(blob, offset)

    def reader(self, blob: Descriptor, opened: ExitStack) -> Callable[[int], Iterable[bytes]]:
        assert self._now is not None
        return graph.reader(self._now, blob, opened)

    def abort(self) -> None:
        for source in self._sources.values():
            getattr(source, "abort", lambda: None)()

    def referrers(self, subject: Descriptor) -> list[Descriptor]:
        return []

    def _source(self, origin: str, digest: str) -> Source:
        engine = self._engine
        if origin == _HERE:
            image = images.by_digest(engine.store, digest)
            if image is None:
                raise ImageError(f"image {digest[:19]} of the list is no longer in the store",
                                 remedy="take it out by cowshed manifest remove, or pull it")  # fmt: skip
            self._opened.enter_context(Lease(engine.store, (blob for blob, _, _ in image.blobs)))
            return stored.Stored(engine.store, Archives(engine.store))
        if origin not in self._sources:
            from cowshed.image.copying import open_source

            place = names.parse(f"docker://{origin}@{digest}")
            reach = self._reaches[1] if origin.partition("/")[0] == self._reaches[0] else AS_CONFIGURED
            self._sources[origin] = open_source(engine, place, self._opened, self._progress, reach)[0]
        return self._sources[origin]


# ---------------------------------------------------------------- within a list


def _list(engine: Engine, name: str) -> tuple[str, dict[str, Any]]:
    key = canonical(name)
    document = lists.get(engine.store, key)
    if document is None:
        raise _none(name)
    return key, document


def _none(name: str) -> NotFound:
    return NotFound(f"there is no list {name}", remedy="cowshed manifest create makes one")


def _keep(engine: Engine, key: str, document: dict[str, Any]) -> None:
    if len(json.dumps(document["index"])) > manifests.LIMIT:
        raise ImageError(f"the index would have more than {manifests.LIMIT} bytes")
    with engine.store.transaction() as tx:
        lists.put(tx, key, document)


def _find(
    engine: Engine, text: str, opened: ExitStack, progress: Progress, reach: Reach = AS_CONFIGURED
) -> tuple[Source, Descriptor, str]:
    """An image of this store, or of a registry: its source, its manifest, and where that is."""
    from cowshed.image.copying import open_source

    place = names.parse(text) if text.partition(":")[0] in names.KNOWN and ":" in text else None
    if place is None:
        digest = text.rpartition("@")[2] if "@" in text else ""
        try:
            image = engine.image(text)
        except NotFound:
            image = None
        if image is None or digest not in ("", image.manifest_digest):  # it may be that of an index
            place = names.parse(f"docker://{text}")
        else:
            source, wanted = open_source(engine, names.parse(f"{names.STORE}:{image.id}"), opened, progress)
            return source, wanted, _HERE
    if place.transport not in ("docker", names.STORE):
        raise BadUsage(f"{text[:100]!r} cannot be in a list", remedy="name an image of this store or of a registry")
    source, wanted = open_source(engine, place, opened, progress, reach)
    told = place.reference
    return source, wanted, _HERE if told is None else f"{told.registry}/{told.repository}"


def _add(engine: Engine, document: dict[str, Any], image: str, *, every: bool, said: Said, reach: Reach) -> str:
    from cowshed.image import progress

    with ExitStack() as opened:
        source, wanted, origin = _find(engine, image, opened, progress.Progress(), reach)
        if wanted.media_type in INDEXES and every:
            value = manifests.document(graph.read(source, wanted), "the index")
            found = [dict(entry) for _, entry in manifests.entries(value)]
        else:
            found = [_described(source, graph.choose(source, wanted, None))]
    if not found:
        raise ImageError(f"{image} names no image", remedy="add images one by one")
    listed = document["index"]["manifests"]
    for entry in found:
        _say(entry, said)
        listed[:] = [there for there in listed if there["digest"] != entry["digest"]]
        listed.append(entry)
        document["from"][entry["digest"]] = origin
    return str(found[-1]["digest"])


def _described(source: Source, wanted: Descriptor) -> dict[str, Any]:
    """The entry of a manifest, its platform read from the image's configuration."""
    value = manifests.document(graph.read(source, wanted), "the manifest")
    entry: dict[str, Any] = {"mediaType": wanted.media_type, "digest": wanted.digest, "size": wanted.size}
    config = manifests.descriptor(value.get("config"), "the manifest's configuration")
    if config.media_type in (manifests.OCI_CONFIG, manifests.DOCKER_CONFIG) and config.size <= manifests.LIMIT:
        data = b"".join(graph.verified(config, source.blob(config)))
        told = manifests.document(data, "the image's configuration")
        keys = ("architecture", "os", "os.version", "variant")
        entry["platform"] = {key: told[key] for key in keys if isinstance(told.get(key), str) and told[key]}
    elif isinstance(value.get("artifactType"), str):
        entry["artifactType"] = value["artifactType"]
    return entry


def _say(entry: dict[str, Any], said: Said) -> None:
    told: dict[str, Any] = {
        "os": said.os, "architecture": said.architecture, "variant": said.variant, "os.version": said.os_version,
        "features": list(said.features), "os.features": list(said.os_features),
    }  # fmt: skip
    told = {key: value for key, value in told.items() if value}
    if told:
        entry["platform"] = {**(entry.get("platform") or {}), **told}
    if said.annotations:
        entry["annotations"] = {**(entry.get("annotations") or {}), **said.annotations}


def _entry(engine: Engine, document: dict[str, Any], image: str) -> dict[str, Any]:
    """The entry that a digest, or a name of an image here or in a registry, means. NotFound."""
    listed: list[dict[str, Any]] = document["index"]["manifests"]
    word = image.rpartition("@")[2]
    if word.partition(":")[0] not in reference.DIGITS:
        from cowshed.image import progress

        with ExitStack() as opened:
            source, wanted, _ = _find(engine, image, opened, progress.Progress())
            word = graph.choose(source, wanted, None).digest
    found = [entry for entry in listed if entry["digest"] == word]
    if not found:
        raise NotFound(f"{image} is not in the list", remedy="cowshed manifest inspect shows what is")
    return found[0]
