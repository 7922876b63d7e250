"""pull, images, rmi, tag, history, image inspect."""

from __future__ import annotations

import json
import sys

from cowshed.cli import output
from cowshed.errors import Conflict, CowshedError
from cowshed.image import reference
from cowshed.state import containers
from cowshed.state import images as rows_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, TextIO

    from cowshed.cli.parser import Values
    from cowshed.engine import Engine
    from cowshed.state.rows import ImageRow


def fetch(engine: Engine, text: str, *, platform: str | None, quiet: bool, stream: TextIO) -> ImageRow:
    """Pull an image, saying each step on stream."""
    from cowshed.image import manifest
    from cowshed.image.pull import pull as pull_

    def report(line: str) -> None:
        if not quiet:
            stream.write(line + "\n")
            stream.flush()

    parsed = reference.parse(text)
    wanted = manifest.normal_platform(platform) if platform else manifest.host_platform()
    settings = engine.settings
    return pull_(
        engine.layers(),
        parsed,
        platform=wanted,
        registries=settings.registries,
        durability=settings.durability,
        report=report,
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
    from cowshed.image.blobs import Blobs
    from cowshed.layers.faults import step

    store = engine.store
    image = engine.image(text)
    names = rows_of.names(store, image.id)
    by_id = text.removeprefix("sha256:") and image.id.removeprefix("sha256:").startswith(text.removeprefix("sha256:"))
    if not by_id and len(names) > 1:
        name = reference.parse(text).name
        with store.transaction() as tx:
            rows_of.untag(tx, name)
        print(f"Untagged: {reference.familiar(name)}")
        return
    if by_id and len(names) > 1 and not force:
        raise Conflict(f"image {image.id[7:19]} has {len(names)} names", remedy="remove them one by one, or use -f")
    with store.transaction() as tx:
        users = containers.of_image(store, image.id)
        if users and not force:
            raise Conflict(
                f"image {text} is used by container {users[0].name}", remedy="remove the container first, or use -f"
            )
        if users:
            for name in names:
                rows_of.untag(tx, name)
        else:
            rows_of.delete(tx, image.id)
    for name in names:
        print(f"Untagged: {reference.familiar(name)}")
    if users:
        return
    step("rmi.forgotten")
    for (driver,) in store.query("select name from drivers"):
        layers = engine.layers(driver)
        layers.remove_unreferenced(reversed(image.chain_ids))
        step("rmi.layers")
        layers.purge(1.0)
    blobs = Blobs(store.root)
    for digest in rows_of.unused_blobs(store, [b[0] for b in image.blobs]):
        blobs.remove(digest)
    print(f"Deleted: {image.id}")


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
    config = json.loads(image.config)
    names = rows_of.names(engine.reader, image.id)
    familiar = [reference.familiar(name) for name in names]
    return {
        "Id": image.id,
        "RepoTags": [name for name in familiar if "@" not in name],
        "RepoDigests": sorted(
            {f"{n.partition('@')[0].rpartition(':')[0] or n}@{image.manifest_digest}" for n in familiar}
        ),
        "Created": config.get("created"),
        "Architecture": config.get("architecture"),
        "Os": config.get("os"),
        "Author": config.get("author", ""),
        "Size": image.size,
        "Config": config.get("config") or {},
        "RootFS": {"Type": "layers", "Layers": list(image.diff_ids)},
    }


def inspect(engine: Engine, said: Values) -> int:
    output.document([document(engine, engine.image(name)) for name in said["operands"]], said.format)
    return 0
