"""`image copy`: from any place of images to any other, byte for byte."""

from __future__ import annotations

import os
import stat
from contextlib import ExitStack

from cowshed.errors import BadUsage, ImageError, NotFound
from cowshed.image import dockerarchive, layout, reference
from cowshed.image.archives import Archives
from cowshed.image.blobs import BlobStore
from cowshed.image.contents import Directory, archive
from cowshed.image.manifest import INDEXES, Descriptor
from cowshed.image.staging import Staging
from cowshed.image.transports import graph, names, stored
from cowshed.image.transports.files import DirectoryFiles, OutputFile, TarFiles
from cowshed.image.transports.flat import FlatContents, FlatTarget
from cowshed.image.transports.graph import Root
from cowshed.image.transports.layouts import LayoutSource, LayoutTarget, as_full_name, as_tag, as_word
from cowshed.registry.reach import AS_CONFIGURED
from cowshed.state.leases import Lease

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from typing import Protocol

    from cowshed.engine import Engine
    from cowshed.image.contents import Contents
    from cowshed.image.platform import Platform
    from cowshed.image.progress import Progress
    from cowshed.image.resolve import Resolved
    from cowshed.image.transports.graph import Source, Target
    from cowshed.image.transports.names import Place
    from cowshed.registry.reach import Reach

    class Finishing(Target, Protocol):
        def finish(self, roots: Iterable[Root]) -> None:
            """Name the images, last."""


def copy(
    engine: Engine,
    origin: str,
    goal: str,
    *,
    every: bool = False,
    referrers: bool = False,
    platform: Platform | None = None,
    progress: Progress,
    reach_source: Reach = AS_CONFIGURED,
    reach_goal: Reach = AS_CONFIGURED,
) -> Descriptor:
    """Copy an image between two places (`cowshed.image.transports.names`); what is at the goal then.

    every: all that an index names, else the manifest for the platform (None: this machine's). referrers: also what is
    attached, and what is attached to that. reach_source, reach_goal: what the command says of their registries.
    Raises BadUsage, NotFound, ImageError, Tampered, RegistryError, AuthError, NoSpace, Untrusted, ConfigError; then
    nothing has its name there.
    """
    source_place, goal_place = names.parse(origin), names.parse(goal)
    if goal_place.transport == names.STORE and source_place.reference is not None:  # it is pulled
        gate = engine.gate()
        if gate is not None:
            gate.before(source_place.reference)
    with ExitStack() as opened:
        source, wanted = open_source(engine, source_place, opened, progress, reach_source)
        return transfer(
            engine, source, wanted, goal_place, opened, every=every, referrers=referrers, platform=platform,
            progress=progress, came=source_place, reach=reach_goal, reach_source=reach_source,
        )  # fmt: skip


def transfer(
    engine: Engine,
    source: Source,
    wanted: Descriptor,
    goal: Place,
    opened: ExitStack,
    *,
    every: bool,
    progress: Progress,
    referrers: bool = False,
    platform: Platform | None = None,
    came: Place | None = None,
    reach: Reach = AS_CONFIGURED,
    reach_source: Reach = AS_CONFIGURED,
) -> Descriptor:
    """Copy what a source has to a place. came: the source's own place; reach, reach_source: what the command says of
    the registry of the goal and of the source."""
    if goal.transport == names.STORE:
        if every and wanted.media_type in INDEXES:
            raise BadUsage("the store keeps images of one platform each", remedy="leave --all away, or use --platform")
        if referrers:
            raise BadUsage("the store keeps images, and nothing that is attached to them", remedy="copy to a layout")
        return _into_store(engine, source, wanted, goal.name, platform, progress, came, reach_source)
    target = _open_target(engine, goal, opened, came, reach)
    roots = [Root(wanted, _said(goal))]
    done = graph.copy(
        source, target, roots, progress=progress, every=every, platform=platform, referrers=referrers
    )  # fmt: skip
    target.finish(done)
    return done[0].target


def open_source(
    engine: Engine, place: Place, opened: ExitStack, progress: Progress, reach: Reach = AS_CONFIGURED
) -> tuple[Source, Descriptor]:
    """A source for the image at a place, and its manifest or index; what is to be closed goes into opened. reach: what
    the command says of its registry."""
    if place.reference is not None:
        from cowshed.image.transports.registries import RegistrySource

        registry = opened.enter_context(RegistrySource(place.reference, engine.settings.registries, reach))
        return registry, registry.root()
    blobs = BlobStore(engine.store.root)
    if place.transport == names.STORE:
        image = engine.image(place.name)
        opened.enter_context(Lease(engine.store, (digest for digest, _, _ in image.blobs)))
        return stored.Stored(engine.store, Archives(engine.store)), stored.root(image).target
    staging = opened.enter_context(Staging(blobs))
    contents = _contents(place, staging, opened, progress)
    if place.transport == "dir":
        flat = FlatContents(contents)
        return flat, flat.root()
    if layout.is_layout(contents):
        found = LayoutSource(contents)
        return found, found.find(place.name)
    if place.transport != "docker-archive":
        raise ImageError(f"{place.path} is no image layout: it has no oci-layout file")
    return _older(contents, place)


def _contents(place: Place, staging: Staging, opened: ExitStack, progress: Progress) -> Contents:
    try:
        fd = os.open(place.path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        raise NotFound(f"{place.path} does not exist") from None
    opened.callback(os.close, fd)
    is_directory = stat.S_ISDIR(os.fstat(fd).st_mode)
    if is_directory != (place.transport in ("oci", "dir")):
        kind = "a directory" if is_directory else "no directory"
        raise BadUsage(f"{place.path} is {kind}", remedy=f"write one of {', '.join(names.KNOWN.values())}")
    if is_directory:
        return Directory(fd, staging)
    progress.step("reading the archive")
    return archive(fd, staging)


class _Older:
    """An image of a docker archive from before version 25, whose manifest is made here."""

    def __init__(self, resolved: Resolved, contents: Contents) -> None:
        self._image, self._contents = resolved.image, contents

    def document(self, wanted: Descriptor) -> bytes:
        return self._image.manifest

    def blob(self, blob: Descriptor, offset: int = 0) -> Iterator[bytes]:
        if blob.digest == self._image.id:
            return iter((self._image.config[offset:],))
        return self._contents.blob(blob, offset)

    def referrers(self, subject: Descriptor) -> list[Descriptor]:
        return []


def _older(contents: Contents, place: Place) -> tuple[Source, Descriptor]:
    wanted = reference.parse(place.name).name if place.name else ""
    found = [entry for entry in dockerarchive.saved(contents) if not wanted or wanted in entry.names]
    if len(found) != 1:
        raise ImageError(f"{place.path} has {len(found)} images{f' {place.name}' * bool(place.name)}",
                         remedy="name one behind a colon: docker-archive:FILE:NAME")  # fmt: skip
    resolved = dockerarchive.resolve(contents, found[0])
    return _Older(resolved, contents), stored.root(resolved.image).target


def _open_target(engine: Engine, place: Place, opened: ExitStack, came: Place | None, reach: Reach) -> Finishing:
    if place.reference is not None:
        from cowshed.image.transports.registries import RegistryTarget

        there = came.reference if came is not None else None
        mount = (there.registry, there.repository) if there is not None else ("", "")
        registries = engine.settings.registries
        return opened.enter_context(RegistryTarget(place.reference, registries, mount=mount, reach=reach))
    if place.transport == "dir":
        return FlatTarget(opened.enter_context(DirectoryFiles(place.path)))
    if place.transport == "oci":
        return LayoutTarget(opened.enter_context(DirectoryFiles(place.path)), _annotations(place.name))
    files = TarFiles(opened.enter_context(OutputFile(place.path)))
    if place.transport == "oci-archive":
        return LayoutTarget(files, _annotations(place.name))
    return LayoutTarget(files, as_tag, docker=True)


def _annotations(name: str) -> Callable[[str], dict[str, str]]:
    return as_full_name if "/" in name else as_word


def _said(goal: Place) -> tuple[str, ...]:
    """The name that an image has in a layout; in a docker archive a canonical one."""
    if not goal.name or goal.reference is not None:
        return ()
    canonical = goal.transport == "docker-archive" or "/" in goal.name
    return (reference.parse(goal.name).name if canonical else goal.name,)


class _Origin:
    """A source, as `resolve` and `bring` read."""

    def __init__(self, source: Source) -> None:
        self._source = source

    def manifest(self, wanted: str) -> tuple[bytes, str]:
        return self._source.document(Descriptor(wanted, -1, "")), ""

    def blob(self, blob: Descriptor, offset: int = 0) -> Iterable[bytes]:
        return self._source.blob(blob, offset)


def _into_store(
    engine: Engine, source: Source, wanted: Descriptor, name: str, platform: Platform | None, progress: Progress,
    came: Place | None, reach: Reach,
) -> Descriptor:  # fmt: skip
    from cowshed.image.pull import bring, origin_of
    from cowshed.image.resolve import resolve

    parsed = reference.parse(name)
    if parsed.digest:
        raise BadUsage("an image is copied to a tag, and not to a digest", remedy=f"write {names.STORE}:NAME[:TAG]")
    origin, layers = _Origin(source), engine.layers()
    found = resolve(
        engine.store, origin, wanted.digest, digest=wanted.digest, size=wanted.size, platform=platform,
        progress=progress,
    )  # fmt: skip
    there = came.reference if came is not None else None
    row = None
    if there is not None:
        from cowshed.registry.client import Client

        settings = engine.settings.registries.get(there.registry) or {}
        with Client(there.registry, there.repository, settings, reach=reach) as client:
            row = origin_of(client, there, found, engine.gate())
    bring(
        layers, origin, found, names=[parsed.name], durability=engine.settings.durability, progress=progress, came=row
    )  # fmt: skip
    return stored.root(found.image).target
