"""Writing images of the store into archives and directories: what `save` does, and `load` reads again.

The bytes depend on the images and on the order in which they are named alone, and not on driver, host or time.
"""

from __future__ import annotations

from cowshed.errors import BadUsage
from cowshed.image.archives import Archives
from cowshed.image.remove import as_name
from cowshed.image.transports import graph, stored
from cowshed.image.transports.files import DirectoryFiles, OutputFile, TarFiles
from cowshed.image.transports.flat import FlatTarget
from cowshed.image.transports.layouts import LayoutTarget, as_full_name, as_tag
from cowshed.state import images
from cowshed.state.leases import Lease

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from cowshed.image.progress import Progress
    from cowshed.image.transports.files import Files
    from cowshed.image.transports.graph import Root
    from cowshed.state.rows import ImageRow
    from cowshed.state.store import Store

FORMATS = ("docker-archive", "oci-archive", "oci-dir", "docker-dir")


def chosen(store: Store, words: Iterable[str], find: Callable[[str], ImageRow]) -> tuple[Root, ...]:
    """The images that words mean, each once, with those of their names that were said (of an id or
    a digest, none). NotFound."""
    names: dict[str, list[str]] = {}
    rows: dict[str, ImageRow] = {}
    for word in words:
        image = find(word)
        rows[image.id] = image
        said = names.setdefault(image.id, [])
        name = as_name(word, images.names(store, image.id))
        if name and "@" not in name and name not in said:
            said.append(name)
    return tuple(stored.root(image, names[id_]) for id_, image in rows.items())


def save(store: Store, roots: Sequence[Root], output: str, kind: str, *, progress: Progress) -> None:
    """Write images, of `chosen`, in one of FORMATS to a file ("-": standard output) or a directory.

    Raises BadUsage, Conflict, NotFound, ImageError (a blob is gone), Tampered (or damaged), NoSpace, OSError; then
    nothing new is there.
    """
    rows = [row for root in roots if (row := images.by_digest(store, root.target.digest)) is not None]
    with Lease(store, (digest for row in rows for digest, _, _ in row.blobs)):
        source = stored.Stored(store, Archives(store))
        if kind.endswith("-dir"):
            if output in ("", "-"):
                raise BadUsage(f"{kind} is a directory", remedy="use -o DIRECTORY")
            with DirectoryFiles(output) as directory:
                _write(source, directory, roots, kind, progress)
            return
        with OutputFile(output) as fd:
            _write(source, TarFiles(fd), roots, kind, progress)


def _write(source: stored.Stored, files: Files, roots: Sequence[Root], kind: str, progress: Progress) -> None:
    target: FlatTarget | LayoutTarget
    if kind == "docker-dir":
        target = FlatTarget(files)
    elif kind == "docker-archive":
        target = LayoutTarget(files, as_tag, docker=True)
    else:
        target = LayoutTarget(files, as_full_name)
    target.finish(graph.copy(source, target, roots, progress=progress))
