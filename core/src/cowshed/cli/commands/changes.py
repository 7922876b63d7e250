"""diff, commit, export."""

from __future__ import annotations

import sys

from cowshed import log
from cowshed.state import containers

TYPE_CHECKING = False
if TYPE_CHECKING:
    from cowshed.cli.parser import Values
    from cowshed.engine import Engine


def diff(engine: Engine, said: Values) -> int:
    """As docker shows it: a directory in which something changed is changed itself. With --check the container is
    paused meanwhile, if it runs and its driver has no snapshots."""
    from cowshed.container.access import Held

    row = containers.find(engine.reader, said["operands"][0])
    kinds: dict[bytes, str] = {}
    wrong: list[str] = []
    with Held(engine, row) as held, held.difference(pause=bool(said.check)) as difference:
        if said.check:
            wrong = difference.disagreements()
        for changed in difference.changes:
            above = changed.path
            while above := above.rpartition(b"/")[0]:
                kinds.setdefault(above, "C")
            if changed.path:
                kinds[changed.path] = changed.kind.value
    for each in wrong:
        log.warn(f"driver {row.driver} told wrongly: {each}")
    if said.format:
        from cowshed.cli import output

        rows = [{"Kind": kind, "Path": "/" + path.decode(errors="replace")} for path, kind in sorted(kinds.items())]
        output.listing(rows, ("Kind", "Path"), said.format, what="diff")
        return int(bool(wrong))
    sys.stdout.flush()
    # Names need not be text.
    sys.stdout.buffer.write(b"".join([b"%s /%s\n" % (kinds[path].encode(), path) for path in sorted(kinds)]))
    return int(bool(wrong))


def commit(engine: Engine, said: Values) -> int:
    from cowshed.container.commit import commit as commit_

    name, *rest = said["operands"]
    image = commit_(
        engine,
        containers.find(engine.reader, name),
        name=rest[0] if rest else "",
        author=said.author or "",
        message=said.message or "",
        changes=said.change or (),
        pause=said.pause is not False,
        compression=said.compression or "",
    )
    print(image.id)
    return 0


def export(engine: Engine, said: Values) -> int:
    """A container that runs is read from a snapshot if its driver has them, else paused meanwhile."""
    from cowshed.container.access import Held
    from cowshed.image.making import source_date_epoch
    from cowshed.image.transports.files import OutputFile, write_all
    from cowshed.layers import archive

    row = containers.find(engine.reader, said["operands"][0])
    epoch = source_date_epoch()
    with OutputFile(said.output or "-") as out, Held(engine, row) as held, held.tree(pause=True) as root:
        for piece in archive.whole(root, clamp=epoch):
            write_all(out, piece)
    return 0
