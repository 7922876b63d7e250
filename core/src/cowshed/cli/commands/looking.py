"""image mount, image unmount, image diff."""

from __future__ import annotations

import sys

from cowshed.cli import output
from cowshed.image import mounts, progress
from cowshed.state import images

TYPE_CHECKING = False
if TYPE_CHECKING:
    from cowshed.cli.parser import Values
    from cowshed.engine import Engine


def mount(engine: Engine, said: Values) -> int:
    """As podman has it: without an image, a list of what is mounted; of one, the path alone."""
    words = said["operands"]
    if not words and not said.all:
        _list(engine, said)
        return 0
    found = [image for image, _ in images.list_all(engine.store)] if said.all else [engine.image(w) for w in words]
    shown = progress.choose(sys.stderr, quiet=True)
    for image in found:
        path = mounts.mount(engine.layers(), image, durability=engine.settings.durability, progress=shown)
        print(path if len(found) == 1 else f"{_name(engine, image.id)} {path}")
    return 0


def _list(engine: Engine, said: Values) -> None:
    rows = [
        {"ID": id_ if said.no_trunc else id_[7:19], "Image": _name(engine, id_), "Mountpoint": path}
        for id_, path in sorted(mounts.mounted(engine.reader).items())
    ]
    output.listing(rows, ("ID", "Image", "Mountpoint"), said.format, what="image mount", headings={"ID": "IMAGE ID"})


def _name(engine: Engine, id_: str) -> str:
    from cowshed.image.reference import familiar

    return familiar(next(iter(images.names(engine.reader, id_)), "")) or id_[7:19]


def unmount(engine: Engine, said: Values) -> int:
    from cowshed.errors import BadUsage

    store = engine.store
    if said.all:
        ids = sorted(mounts.mounted(store))
    elif said["operands"]:
        ids = [engine.image(word).id for word in said["operands"]]
    else:
        raise BadUsage("image unmount needs an image", remedy="name one, or use --all")
    for id_ in ids:
        if mounts.unmount(store, id_, force=bool(said.force)):
            print(id_)
    return 0


def diff(engine: Engine, said: Values) -> int:
    from cowshed.image.difference import difference

    old, new = (engine.image(word) for word in said["operands"])
    with progress.choose(sys.stderr, quiet=bool(said.quiet)) as shown:
        found = difference(engine.layers(), old, new, durability=engine.settings.durability, progress=shown)
    if said.format:
        rows = [
            {"Kind": each.kind, "Path": "/" + each.path.decode(errors="replace"), "Before": each.before,
             "After": each.after}
            for each in found
        ]  # fmt: skip
        output.listing(rows, ("Kind", "Path", "Before", "After"), said.format, what="image diff")
        return 0
    sys.stdout.flush()
    out = sys.stdout.buffer
    for each in found:
        sizes = f" {output.size(each.before)} -> {output.size(each.after)}" if each.before or each.after else ""
        out.write(b"%s /%s%s\n" % (each.kind.encode(), each.path, sizes.encode()))
    counts = ", ".join(f"{sum(e.kind == k for e in found)} {w}" for k, w in _WORDS)
    before, after = (sum(getattr(e, name) for e in found) for name in ("before", "after"))
    out.write(f"{counts}; {output.size(before)} -> {output.size(after)}\n".encode())
    return 0


_WORDS = (("A", "added"), ("C", "changed"), ("D", "removed"))
