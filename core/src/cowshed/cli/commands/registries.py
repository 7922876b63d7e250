"""push."""

from __future__ import annotations

import sys

from cowshed.errors import BadUsage
from cowshed.image import reference

TYPE_CHECKING = False
if TYPE_CHECKING:
    from cowshed.cli.parser import Values
    from cowshed.engine import Engine


def push(engine: Engine, said: Values) -> int:
    from cowshed.image import progress
    from cowshed.image.push import push as push_
    from cowshed.image.push import tagged

    text = said["operands"][0]
    parsed = reference.parse(text)
    whole = f"{parsed.registry}/{parsed.repository}"
    if said.all_tags:
        if parsed.digest or not text.endswith(parsed.repository.rpartition("/")[2]):
            raise BadUsage("a tag cannot be named together with --all-tags", remedy="name the repository alone")
        wanted = tagged(engine.store, parsed)
    else:
        wanted = [(parsed.tag, engine.image(text))]
    with progress.choose(sys.stderr, quiet=bool(said.quiet)) as shown:
        done = push_(engine.store, parsed, wanted, registries=engine.settings.registries, progress=shown)
    if said.quiet:
        print(whole if said.all_tags else parsed.name)
        return 0
    for each in done:
        print(f"{each.tag}: digest: {each.digest} size: {each.size}")
    return 0
