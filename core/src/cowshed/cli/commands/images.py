"""pull, images, rmi, tag, history, image inspect."""

from __future__ import annotations

import json
import sys

from cowshed.cli import output
from cowshed.errors import CowshedError
from cowshed.image import reference
from cowshed.state import images as rows_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, TextIO

    from cowshed.cli.parser import Values
    from cowshed.engine import Engine
    from cowshed.state.rows import ImageRow


def fetch(engine: Engine, text: str, *, platform: str | None, quiet: bool, stream: TextIO) -> ImageRow:
    """Pull an image, with bars or a line for each step on stream."""
    from cowshed.image import platform as platforms
    from cowshed.image import progress
    from cowshed.image.pull import pull as pull_

    settings = engine.settings
    with progress.choose(stream, quiet=quiet) as shown:
        return pull_(
            engine.layers(),
            reference.parse(text),
            platform=platforms.parse(platform) if platform else None,
            registries=settings.registries,
            durability=settings.durability,
            progress=shown,
        )


def pull(engine: Engine, said: Values) -> int:
    row = fetch(engine, said["operands"][0], platform=said.platform, quiet=bool(said.quiet), stream=sys.stderr)
    print(row.id if said.quiet else reference.parse(said["operands"][0]).familiar)
    return 0


def images(engine: Engine, said: Values) -> int:
    rows = []
    for image, names in rows_of.list_all(engine.reader):
        id_ = image.id if said.no_trunc else image.id[7:19]
        if said.quiet:
            print(id_)
            continue
        for name in names or ["<none>:<none>"]:
            familiar = reference.familiar(name)
            if "@" in familiar:
                repository, tag = familiar.partition("@")[0], "<none>"
            else:
                repository, _, tag = familiar.rpartition(":")
            rows.append(
                {
                    "Repository": repository,
                    "Tag": tag,
                    "ID": id_,
                    "CreatedSince": f"{output.ago(image.created)} ago",
                    "CreatedAt": output.rfc3339(image.created),
                    "Size": output.size(image.size),
                    "Digest": image.manifest_digest,
                    "Platform": image.platform,
                }
            )
    if not said.quiet:
        output.listing(rows, ("Repository", "Tag", "ID", "CreatedSince", "Size"), said.format, what="images")
    return 0


def tag(engine: Engine, said: Values) -> int:
    image = engine.image(said["operands"][0])
    name = reference.parse(said["operands"][1])
    with engine.store.transaction() as tx:
        rows_of.tag(tx, name.name, image.id)
    return 0


def remove(engine: Engine, said: Values) -> int:
    status = 0
    engine.freeing = True
    _ = engine.store
    for text in said["operands"]:
        try:
            _remove(engine, text, force=bool(said.force))
        except CowshedError as error:
            sys.stderr.write(f"cowshed: {error}{': ' + error.remedy if error.remedy else ''}\n")
            status = 1
    return status


def _remove(engine: Engine, text: str, *, force: bool) -> None:
    from cowshed.image.remove import remove as remove_

    done = remove_(
        engine.store,
        engine.image(text),
        text,
        force=force,
        layers=engine.layers,
        running=lambda row: engine.store.locks.held("monitors", row.number),
    )
    for name in done.untagged:
        print(f"Untagged: {name}")
    if done.deleted:
        print(f"Deleted: {done.deleted}")


def history(engine: Engine, said: Values) -> int:
    image = engine.image(said["operands"][0])
    config = json.loads(image.config)
    sizes = [size for _, _, size in image.blobs]
    rows = []
    for entry in config.get("history") or ():
        size = 0 if entry.get("empty_layer") else (sizes.pop(0) if sizes else 0)
        created_by = str(entry.get("created_by") or entry.get("comment") or "")
        rows.append(
            {
                "ID": "<missing>",
                "CreatedSince": entry.get("created") or "",
                "CreatedBy": created_by if said.no_trunc else created_by[:60],
                "Size": output.size(size),
                "Comment": entry.get("comment") or "",
            }
        )
    rows.reverse()
    if rows:
        rows[0]["ID"] = image.id if said.no_trunc else image.id[7:19]
    output.listing(rows, ("ID", "CreatedSince", "CreatedBy", "Size"), said.format, what="history")
    return 0


def document(engine: Engine, image: ImageRow) -> dict[str, Any]:
    from cowshed.image.inspect import document as document_

    return document_(engine.reader, image)


def inspect(engine: Engine, said: Values) -> int:
    output.document([document(engine, engine.image(name)) for name in said["operands"]], said.format)
    return 0
