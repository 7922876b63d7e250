"""pull, load, save, import, images, tag, untag, rmi, image prune, history, image inspect."""

from __future__ import annotations

import sys

from cowshed.cli import output
from cowshed.errors import CowshedError
from cowshed.image import reference
from cowshed.state import images as rows_of
from cowshed.storage.errors import StorageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, TextIO

    from cowshed.cli.parser import Values
    from cowshed.engine import Engine
    from cowshed.image.platform import Platform
    from cowshed.image.pull import Pulled
    from cowshed.image.remove import Removed
    from cowshed.state.rows import ImageRow

_HEADINGS = {"ID": "IMAGE ID", "CREATEDSINCE": "CREATED", "CREATEDAT": "CREATED AT"}
_HISTORY_HEADINGS = {"ID": "IMAGE", "CREATEDSINCE": "CREATED", "CREATEDAT": "CREATED AT", "CREATEDBY": "CREATED BY"}
_CREATED_BY = 45


# ---------------------------------------------------------------- in


def fetch(engine: Engine, text: str, said: Values, stream: TextIO) -> ImageRow:
    """Pull an image, with bars or a line for each step on stream. said: of pull, or of what needs one."""
    return _pull(engine, text, said, stream).image


def _pull(engine: Engine, text: str, said: Values, stream: TextIO) -> Pulled:
    from cowshed.cli import reaching
    from cowshed.cli.commands.registries import allow_short
    from cowshed.image import progress
    from cowshed.image.pull import pull as pull_

    allow_short(engine, text)
    settings, reach = engine.settings, reaching.reach(said)
    with progress.choose(stream, quiet=bool(said.quiet)) as shown:
        return pull_(
            engine.layers(),
            reference.parse(text),
            platform=_platform(said.platform),
            registries=settings.registries,
            durability=settings.durability,
            progress=shown,
            gate=engine.gate(),
            reach=reach,
        )


def _platform(text: str | None) -> Platform | None:
    from cowshed.image import platform

    return platform.parse(text) if text else None


def pull(engine: Engine, said: Values) -> int:
    text = said["operands"][0]
    parsed = reference.parse(text)
    if said.all_platforms:
        return _pull_all(engine, text, said)
    pulled = _pull(engine, text, said, sys.stderr)
    if not said.quiet:
        print(f"Digest: {pulled.digest}")
        status = "Downloaded newer image for" if pulled.new else "Image is up to date for"
        print(f"Status: {status} {parsed.familiar}")
    print(parsed.name)
    return 0


def _pull_all(engine: Engine, text: str, said: Values) -> int:
    from cowshed.cli import reaching
    from cowshed.cli.commands.registries import allow_short
    from cowshed.errors import BadUsage
    from cowshed.image import progress
    from cowshed.image.pull import pull_all

    if said.platform:
        raise BadUsage("--platform and --all-platforms exclude each other")
    allow_short(engine, text)
    settings, reach = engine.settings, reaching.reach(said)
    parsed = reference.parse(text)
    with progress.choose(sys.stderr, quiet=bool(said.quiet)) as shown:
        done = pull_all(
            engine.layers(), parsed, registries=settings.registries, durability=settings.durability, progress=shown,
            gate=engine.gate(), reach=reach,
        )  # fmt: skip
    if not said.quiet:
        print(f"Digest: {done[0].digest}")
    for n, each in enumerate(done):
        print(f"{parsed.registry}/{parsed.repository}@{each.image.manifest_digest}" if n else parsed.name)
    return 0


def load(engine: Engine, said: Values) -> int:
    from cowshed.errors import BadUsage
    from cowshed.image import load as loading
    from cowshed.image import progress

    source: str | int = said.input or "-"
    if source == "-":
        source = sys.stdin.fileno()
        if sys.stdin.isatty():
            raise BadUsage("load reads an archive from its input, which is a terminal", remedy="use -i FILE")
    with progress.choose(sys.stderr, quiet=bool(said.quiet)) as shown:
        loaded = loading.load(
            engine.layers(),
            source,
            durability=engine.settings.durability,
            progress=shown,
            platform=_platform(said.platform),
            replace=bool(said.replace),
        )
    for each in loaded:
        for name in each.names:
            print(f"Loaded image: {name}")
        if not each.names:
            print(f"Loaded image ID: {each.image.id}")
    return 0


def save(engine: Engine, said: Values) -> int:
    from cowshed.image import progress
    from cowshed.image.save import chosen
    from cowshed.image.save import save as save_

    roots = chosen(engine.store, said["operands"], engine.image)
    with progress.choose(sys.stderr, quiet=bool(said.quiet)) as shown:
        save_(engine.store, roots, said.output or "-", said.format or "docker-archive", progress=shown)
    return 0


def import_(engine: Engine, said: Values) -> int:
    import os

    from cowshed.errors import BadUsage
    from cowshed.image.contents import pieces
    from cowshed.image.importing import import_archive

    source, *rest = said["operands"]
    if "://" in source:
        raise BadUsage("import reads files and its input, and nothing from a network",
                       remedy=f"curl -L {source} | cowshed import -")  # fmt: skip
    fd = sys.stdin.fileno() if source == "-" else os.open(source, os.O_RDONLY | os.O_CLOEXEC)
    try:
        image = import_archive(
            engine,
            pieces(fd),
            name=rest[0] if rest else "",
            source=os.path.basename(source),
            message=said.message or "",
            changes=said.change or (),
            platform=_platform(said.platform),
            compression=said.compression or "",
        )
    finally:
        if source != "-":
            os.close(fd)
    print(image.id)
    return 0


# ---------------------------------------------------------------- listing


def images(engine: Engine, said: Values) -> int:
    from cowshed.image.listing import listing

    filters = list(said.filter or ())
    filters += [f"reference={pattern}" for pattern in said["operands"]]
    columns: tuple[str, ...] = ("Repository", "Tag", "ID", "CreatedSince", "Size")
    if said.digests:
        columns = ("Repository", "Tag", "Digest", "ID", "CreatedSince", "Size")
    rows, digests = [], rows_of.digests(engine.reader)
    for image, names in listing(engine.reader, filters, find=engine.image, moment=output.moment):
        id_ = image.id if said.no_trunc else image.id[7:19]
        if said.quiet:
            print(id_)
            continue
        rows += [_row(image, id_, name, digests.get(name, image.manifest_digest)) for name in names or [""]]
    if not said.quiet:
        output.listing(rows, columns, said.format, what="images", headings=_HEADINGS)
    return 0


def _row(image: ImageRow, id_: str, name: str, digest: str) -> dict[str, Any]:
    familiar = reference.familiar(name)
    if not familiar:
        repository = tag_ = "<none>"
    elif "@" in familiar:
        repository, tag_ = familiar.partition("@")[0], "<none>"
    else:
        repository, _, tag_ = familiar.rpartition(":")
    size = output.size(image.size)
    return {
        "Repository": repository,
        "Tag": tag_,
        "ID": id_,
        "CreatedSince": _since(image.created),
        "CreatedAt": output.rfc3339(image.created) if image.created else "N/A",
        "Size": size,
        "VirtualSize": size,
        "Digest": digest,
        "Platform": image.platform,
        "Containers": "N/A",
        "SharedSize": "N/A",
        "UniqueSize": "N/A",
    }


def _since(created: int) -> str:
    return f"{output.ago(created)} ago" if created else "N/A"


def history(engine: Engine, said: Values) -> int:
    from cowshed.image.config import created_ns
    from cowshed.image.history import history as steps

    human = said.human is not False
    rows = []
    for step in steps(engine.image(said["operands"][0])):
        id_ = step.image_id or "<missing>"
        if step.image_id and not said.no_trunc:
            id_ = id_[7:19]
        if said.quiet:
            print(id_)
            continue
        created = created_ns(step.created)
        by = " ".join(step.created_by.split())
        if not said.no_trunc and len(by) > _CREATED_BY:
            by = by[: _CREATED_BY - 1] + "…"
        rows.append(
            {
                "ID": id_,
                "CreatedSince": _since(created) if human else step.created,
                "CreatedAt": step.created,
                "CreatedBy": by,
                "Size": output.size(step.size) if human else step.size,
                "Comment": step.comment,
            }
        )
    if not said.quiet:
        columns = ("ID", "CreatedSince", "CreatedBy", "Size", "Comment")
        output.listing(rows, columns, said.format, what="history", headings=_HISTORY_HEADINGS)
    return 0


def document(engine: Engine, image: ImageRow) -> dict[str, Any]:
    from cowshed.image.inspect import document as document_

    return document_(engine.reader, image)


def inspect(engine: Engine, said: Values) -> int:
    found, failures = [], []
    for name in said["operands"]:
        try:
            found.append(document(engine, engine.image(name)))
        except CowshedError as error:
            failures.append(error)
    if found or not said.format:
        output.document(found, said.format)
    for failure in failures:
        _complain(failure)
    return 1 if failures else 0


# ---------------------------------------------------------------- names and removal


def tag(engine: Engine, said: Values) -> int:
    from cowshed.image.remove import tag as tag_

    image, name = said["operands"]
    tag_(engine.store, engine.image(image), name)
    return 0


def untag(engine: Engine, said: Values) -> int:
    from cowshed.image.remove import untag as untag_

    image = engine.image(said["operands"][0])
    for name in said["operands"][1:] or rows_of.names(engine.reader, image.id):
        untag_(engine.store, name)
        print(f"Untagged: {reference.parse(name).familiar}")
    return 0


def remove(engine: Engine, said: Values) -> int:
    from cowshed.errors import NotFound

    status = 0
    engine.freeing = True
    _ = engine.store
    for text in said["operands"]:
        try:
            _remove(engine, text, force=bool(said.force))
        except (CowshedError, StorageError) as error:
            _complain(error)
            if not (said.force and isinstance(error, NotFound)):
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


def prune(engine: Engine, said: Values) -> int:
    from cowshed.cli import pruning
    from cowshed.image.listing import prunable
    from cowshed.image.remove import prune as prune_

    fits = allowed = prunable(said.filter or (), moment=output.moment)
    if said.dry_run or said.keep_last is not None or said.max_size is not None:
        from cowshed.space import policy as policies

        chosen = pruning.by_policy(
            engine, said, "image",
            lambda inventory, policy: policies.images(inventory, policy, unused=bool(said.all), fits=fits),
        )  # fmt: skip
        if chosen is None:
            return 0
        allowed = lambda image: image.id in chosen and fits(image)  # noqa: E731
    elif not said.force:
        which = "images that no container uses" if said.all else "images without a name"
        if not pruning.agreed(f"all {which}"):
            return 0
    engine.freeing = True
    removed = prune_(engine.store, unused=bool(said.all), layers=engine.layers, fits=allowed)
    _tell_pruned(removed)
    return 0


def _tell_pruned(removed: tuple[Removed, ...]) -> None:
    told = [f"untagged: {name}" for each in removed for name in each.untagged]
    told += [f"deleted: {each.deleted}" for each in removed if each.deleted]
    if told:
        print("Deleted Images:", *told, "", sep="\n")
    print(f"Total reclaimed space: {output.size(sum(each.freed for each in removed))}")


def _complain(error: CowshedError | StorageError) -> None:
    remedy = f": {error.remedy}" if error.remedy else ""
    sys.stderr.write(f"cowshed: {error}{remedy}\n")
