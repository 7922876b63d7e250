"""cp."""

from __future__ import annotations

import os
import sys

from cowshed.errors import BadUsage
from cowshed.state import containers

TYPE_CHECKING = False
if TYPE_CHECKING:
    from cowshed.cli.parser import Values
    from cowshed.engine import Engine

_REMEDY = "one of the two is CONTAINER:PATH; write ./NAME for a file of this host whose name has a colon"


def copy(engine: Engine, said: Values) -> int:
    from cowshed.cli import output
    from cowshed.container import copying
    from cowshed.container.access import Held
    from cowshed.container.view import View

    first, second = said["operands"]
    if not first or not second:
        raise BadUsage("a path is empty", remedy=_REMEDY)
    source, target = _container(first), _container(second)
    if bool(source) == bool(target):
        what = "between two containers" if source else "within this host"
        raise BadUsage(f"cp does not copy {what}", remedy=_REMEDY)
    name, path = source or target or ("", "")
    row = containers.find(engine.reader, name)
    follow, archive = bool(said.follow_link), bool(said.archive)
    if second == "-" and os.isatty(1):
        raise BadUsage("an archive is not written to a terminal", remedy="redirect it to a file or a pipe")
    host = os.open("/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        with Held(engine, row) as held, View(engine, held) as root:
            inside = copying.End(root, b"/" + os.fsencode(path), f"{name}:{path}")
            if second == "-":
                for piece in copying.pack(inside, "-", None, follow=follow, owner=None):
                    _write(piece)
                return 0
            if first == "-":
                copying.unpack(copying.pieces(0), inside)
                return 0
            word = second if source else first
            outside = copying.End(host, os.path.join(os.fsencode(os.getcwd()), os.fsencode(word)), word)
            ends = (inside, outside) if source else (outside, inside)
            # As docker says of it: what comes in is root's, what goes out is the caller's. A set-user-id file that a
            # container has made is then no longer one: it would be the caller's.
            owner = None if archive else (os.geteuid(), os.getegid()) if source else (0, 0)
            count = copying.copy(*ends, follow=follow, owner=owner, privileges=archive or not source)
    finally:
        os.close(host)
    if not said.quiet:
        sys.stderr.write(f"Successfully copied {output.size(count)} to {second}\n")
    return 0


def _container(word: str) -> tuple[str, str] | None:
    """CONTAINER and PATH of an operand; None for a path of this host."""
    if word.startswith((".", "/")) or ":" not in word:
        return None
    name, _, path = word.partition(":")
    if not name or not path:
        raise BadUsage(f"{word!r} names no container and path", remedy="write CONTAINER:PATH")
    return name, path


def _write(piece: bytes) -> None:
    view = memoryview(piece)
    while view:
        view = view[os.write(1, view) :]
