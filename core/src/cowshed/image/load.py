"""Reading images from files: OCI image layouts and docker archives, as directories, tar files or a pipe; and the
directories that skopeo calls `dir:`."""

from __future__ import annotations

import os
import stat

from cowshed.errors import Conflict, ImageError, NotFound
from cowshed.image import dockerarchive, layout
from cowshed.image.archives import Archives
from cowshed.image.contents import Directory, archive
from cowshed.image.manifest import document, parse_manifest
from cowshed.image.pull import bring
from cowshed.image.reference import familiar
from cowshed.image.resolve import Resolved, resolve
from cowshed.image.staging import Staging
from cowshed.image.transports import flat
from cowshed.state import images
from cowshed.storage.record import record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from cowshed.image.contents import Contents
    from cowshed.image.platform import Platform
    from cowshed.image.progress import Progress
    from cowshed.image.resolve import Origin
    from cowshed.layers.layers import Layers
    from cowshed.state.rows import ImageRow


@record(frozen=True)
class Loaded:
    image: ImageRow
    names: tuple[str, ...]  # familiar names that it has now


def load(
    layers: Layers,
    source: str | int,
    *,
    durability: str,
    progress: Progress,
    platform: Platform | None = None,
    replace: bool = False,
) -> tuple[Loaded, ...]:
    """Load every image of a source into the store and the driver.

    source: a path of a file or directory, or a descriptor to read an archive from (standard input). platform: which
    one of several, None for this machine's. replace: whether a name that another image has here is taken from it;
    else that is a Conflict (CVE-2026-50195: an archive decides what a local name means). Raises NotFound, Conflict,
    ImageError, Tampered, NoSpace; nothing of an image that fails stays.
    """
    fd = source if isinstance(source, int) else _open(source)
    blobs = Archives(layers.store)
    try:
        with Staging(blobs) as staging:
            status = os.fstat(fd)
            contents: Contents
            if stat.S_ISDIR(status.st_mode):
                contents = Directory(fd, staging)
            else:
                progress.step("reading the archive")
                if stat.S_ISREG(status.st_mode):
                    progress.begin("archive", "archive", status.st_size)
                contents = archive(fd, staging, lambda done: progress.advance("archive", done))
                progress.end("archive")
            return _load(layers, contents, staging, blobs, durability, progress, platform, replace)
    finally:
        if not isinstance(source, int):
            os.close(fd)


def _load(
    layers: Layers, contents: Contents, staging: Staging, blobs: Archives, durability: str, progress: Progress,
    platform: Platform | None, replace: bool,
) -> tuple[Loaded, ...]:  # fmt: skip
    origin: Origin = layout.LayoutOrigin(contents)
    found: list[tuple[Resolved, tuple[str, ...]]] = []
    here = set()  # ids of images whose layers are here as they were pulled, and not in the archive
    flat_one = flat.is_flat(contents)
    saved = () if flat_one else dockerarchive.saved(contents)
    if flat_one:
        origin = flat.FlatContents(contents)
        found.append((resolve(layers.store, origin, "", digest="", platform=platform, progress=progress), ()))
    elif layout.is_layout(contents):
        for listed in layout.images(contents, platform):
            resolved = resolve(
                layers.store, origin, listed.target.digest, digest=listed.target.digest, size=listed.target.size,
                platform=platform, progress=progress,
            )  # fmt: skip
            # docker save of today writes both; its full names are in manifest.json alone
            said = [name for entry in saved if resolved.image.id[7:] in entry.config for name in entry.names]
            found.append((resolved, tuple(dict.fromkeys((*listed.names, *said)))))
    else:
        for entry in saved:
            resolved = dockerarchive.resolve(contents, entry)
            known = _known(layers, blobs, resolved.image.id)
            if known is not None:
                here.add(known.image.id)
            found.append((known or resolved, entry.names))
    if not found:
        raise ImageError("it holds no images: neither an oci-layout nor a manifest.json is there",
                         remedy="`cowshed load` reads OCI layouts, docker archives and `dir:` directories")  # fmt: skip
    if not replace:
        for resolved, names in found:
            _refuse_taken(layers, resolved.image, names)
    done = []
    for resolved, names in found:

        def publish(resolved: Resolved = resolved) -> bool:
            wanted = resolved.manifest.layers
            missing = {layer.digest for layer in wanted if blobs.size(layer.digest) != layer.size}
            published = [staging.publish(digest) for digest in missing]
            return any(published)

        bring(
            layers, origin, resolved, names=names, durability=durability, progress=progress, prepare=publish,
            anew=resolved.image.id not in here,
        )  # fmt: skip
        done.append(Loaded(resolved.image, tuple(map(familiar, names))))
    return tuple(done)


def _known(layers: Layers, blobs: Archives, id_: str) -> Resolved | None:
    """An image that is here whole already: its registry's manifest and compressed layers are better than these."""
    try:
        image = images.by_id(layers.store, id_)
    except NotFound:
        return None
    manifest = parse_manifest(document(image.manifest, "the manifest"))
    if not all(map(blobs.has, manifest.layers)):
        return None
    return Resolved(image, manifest, image.manifest_digest)


def _refuse_taken(layers: Layers, image: ImageRow, names: tuple[str, ...]) -> None:
    for name in names:
        there = images.by_name(layers.store, name)
        if there is not None and there.id != image.id:
            raise Conflict(
                f"{familiar(name)} is image {there.id[7:19]} here, and {image.id[7:19]} in the archive",
                remedy=f"load with --replace, or cowshed untag {familiar(name)} first",
            )


def _open(path: str) -> int:
    try:
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        raise NotFound(f"{path} does not exist") from None
    except OSError as error:
        raise ImageError(f"{path} cannot be read: {error.strerror}") from None
