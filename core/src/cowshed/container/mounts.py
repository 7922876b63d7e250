"""-v, --mount and the image's volumes: what is mounted where, and the volumes that this needs."""

from __future__ import annotations

import os
import time

from cowshed.errors import BadUsage
from cowshed.state import volumes
from cowshed.state.rows import VolumeRow
from cowshed.storage.record import record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from cowshed.engine import Engine
    from cowshed.state.store import Transaction

_OPTIONS = frozenset(
    "ro rw nocopy z Z private rprivate shared rshared slave rslave cached delegated consistent noexec nosuid nodev "
    "exec suid dev".split()
)
_NO_COPY = frozenset(("nocopy", "volume-nocopy"))
_NOT_OF_OCI = frozenset(("anonymous", "z", "Z", "rw", "cached", "delegated", "consistent", *_NO_COPY))
_NAME = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_.-")


@record(frozen=True)
class Wanted:
    kind: str  # bind, volume, tmpfs
    source: str
    target: str
    options: tuple[str, ...] = ()


def parse(asked: dict[str, Any], image: dict[str, Any]) -> list[Wanted]:
    """All mounts of a container; a later one for the same target wins. BadUsage."""
    found: dict[str, Wanted] = {}
    for target in image.get("Volumes") or ():
        found[target.rstrip("/")] = Wanted("volume", "", target)
    for word in asked.get("volume") or ():
        one = _short(word)
        found[one.target.rstrip("/")] = one
    for word in asked.get("mount") or ():
        one = _long(word)
        found[one.target.rstrip("/")] = one
    for one in found.values():
        if not one.target.startswith("/") or one.target.rstrip("/") == "" or ".." in one.target.split("/"):
            raise BadUsage(
                f"{one.target!r} is no place to mount at", remedy="give an absolute path inside the container"
            )
    return list(found.values())


def _short(word: str) -> Wanted:
    parts = word.split(":")
    if len(parts) == 1:
        return Wanted("volume", "", parts[0])
    if len(parts) > 3:
        raise BadUsage(f"-v {word}: write [SOURCE:]TARGET[:OPTIONS]")
    options = tuple(parts[2].split(",")) if len(parts) == 3 else ()
    unknown = {*options} - _OPTIONS
    if unknown:
        raise BadUsage(f"-v {word}: {min(unknown)!r} is no option", remedy=f"options: {', '.join(sorted(_OPTIONS))}")
    return _made(parts[0], parts[1], options, create=True)


def check_volume_name(name: str) -> None:
    """BadUsage."""
    if not name or not set(name) <= _NAME or name[0] in ".-":
        raise BadUsage(f"{name!r} is no name of a volume", remedy="letters, digits, _ . -; a path begins with /")


def _made(source: str, target: str, options: tuple[str, ...], *, create: bool) -> Wanted:
    if source.startswith(("/", ".", "~")):
        path = os.path.abspath(os.path.expanduser(source))
        if create and not os.path.exists(path):
            os.makedirs(path, exist_ok=True)
        return Wanted("bind", path, target, options)
    check_volume_name(source)
    return Wanted("volume", source, target, options)


def _long(word: str) -> Wanted:
    fields: dict[str, str] = {}
    flags = []
    for part in word.split(","):
        key, equals, value = part.partition("=")
        if equals and key not in ("readonly", "ro"):
            fields[key] = value
        elif value in ("", "true", "1"):
            flags.append("ro" if key in ("readonly", "ro") else key)
    kind = fields.pop("type", "volume")
    source = fields.pop("source", fields.pop("src", ""))
    target = fields.pop("target", fields.pop("destination", fields.pop("dst", "")))
    options = [*flags]
    if "bind-propagation" in fields:
        options.append(fields.pop("bind-propagation"))
    if kind == "tmpfs":
        if "tmpfs-size" in fields:
            options.append(f"size={fields.pop('tmpfs-size')}")
        if "tmpfs-mode" in fields:
            options.append(f"mode={fields.pop('tmpfs-mode')}")
    if fields or kind not in ("bind", "volume", "tmpfs") or not target:
        what = (
            f"{next(iter(fields))} is not known" if fields else "type=bind|volume|tmpfs, source=…, target=… are needed"
        )
        raise BadUsage(f"--mount {word}: {what}")
    if kind == "tmpfs":
        return Wanted("tmpfs", "tmpfs", target, tuple(options))
    if kind == "bind":
        if not source:
            raise BadUsage(f"--mount {word}: source=… is needed")
        path = os.path.abspath(source)
        if not os.path.exists(path):
            raise BadUsage(f"--mount {word}: {path} does not exist")
        return Wanted("bind", path, target, tuple(options))
    return (
        _made(source, target, tuple(options), create=False) if source else Wanted("volume", "", target, tuple(options))
    )


def name_volumes(wanted: list[Wanted]) -> list[Wanted]:
    """Give anonymous volumes their names."""
    return [
        Wanted(w.kind, os.urandom(32).hex(), w.target, (*w.options, "anonymous"))
        if w.kind == "volume" and not w.source
        else w
        for w in wanted
    ]


def write_volumes(tx: Transaction, wanted: list[Wanted], container: int) -> None:
    for one in wanted:
        if one.kind == "volume":
            volumes.insert(tx, VolumeRow(one.source, time.time_ns(), "anonymous" in one.options, {}))
            volumes.use(tx, one.source, container)


def fill_volumes(engine: Engine, wanted: list[Wanted], root: int) -> None:
    """Make the directories of volumes; an empty one gets what the image has at its target."""
    for one in wanted:
        if one.kind != "volume":
            continue
        data = f"{engine.store.root}/volumes/{one.source}/_data"
        if os.path.isdir(data) and (os.listdir(data) or len(volumes.users(engine.store, one.source)) > 1):
            continue
        os.makedirs(os.path.dirname(data), mode=0o700, exist_ok=True)
        from cowshed.storage.kit.trees import copy_tree, remove_tree
        from cowshed_linux.paths import open_in_root

        new = f"{data}.new"
        remove_tree(new)
        try:
            if _NO_COPY & {*one.options}:
                raise FileNotFoundError
            fd = open_in_root(root, one.target, os.O_RDONLY | os.O_DIRECTORY)
        except OSError:
            os.mkdir(new, 0o755)
        else:
            try:
                copy_tree(f"/proc/self/fd/{fd}/.", new)
            finally:
                os.close(fd)
        os.rename(new, data)


def oci(engine: Engine, wanted: list[Wanted]) -> list[dict[str, Any]]:
    """As the runtime configuration has them, parents before children."""
    result = []
    for one in sorted(wanted, key=lambda w: w.target):
        options = [o for o in one.options if o not in _NOT_OF_OCI]
        if one.kind == "tmpfs":
            options = ["nosuid", "nodev", "noexec", *options]
            result.append({"destination": one.target, "type": "tmpfs", "source": "tmpfs", "options": options})
            continue
        source = one.source if one.kind == "bind" else f"{engine.reader.root}/volumes/{one.source}/_data"
        if not any(o.lstrip("r") in ("private", "slave", "shared") for o in options):
            options.append("rprivate")
        result.append({"destination": one.target, "type": "bind", "source": source, "options": ["rbind", *options]})
    return result
