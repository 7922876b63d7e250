"""Layer archives for the suite's own use: of a set of changes, and hostile ones by hand."""

from __future__ import annotations

import contextlib
import io
import os
import tarfile
from collections.abc import Iterable

from cowshed.layers import changes as engine
from cowshed.layers.activation import WrittenBack
from cowshed.layers.apply import apply
from cowshed.layers.archive import stream
from cowshed.storage import api
from cowshed_conformance import tree
from cowshed_conformance.changes import Changes
from cowshed_conformance.harness import Store

_TYPES = {
    "file": tarfile.REGTYPE,
    "dir": tarfile.DIRTYPE,
    "link": tarfile.SYMTYPE,
    "char": tarfile.CHRTYPE,
    "block": tarfile.BLKTYPE,
    "fifo": tarfile.FIFOTYPE,
}


def member(
    name: str,
    data: bytes = b"",
    *,
    kind: bytes = tarfile.REGTYPE,
    link: str = "",
    mode: int = 0o644,
    uid: int = 0,
    gid: int = 0,
    mtime: int = 0,
) -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.mode, info.uid, info.gid, info.mtime = kind, link, mode, uid, gid, mtime
    info.size = len(data)
    return info, data


def pack(members: Iterable[tuple[tarfile.TarInfo, bytes]]) -> bytes:
    """An uncompressed pax archive."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for info, data in members:
            archive.addfile(info, io.BytesIO(data))
    return out.getvalue()


def of_changes(found: Changes, now: tree.Tree, root: str) -> bytes:
    """The archive of changes; root is where the upper tree is mounted. Hard links are completed by inode."""
    present = {p for p, c in found.items() if c != "D"}
    for path in list(present):
        present.update(now[path].links)
    members = []
    for path in sorted(p for p, c in found.items() if c == "D"):
        above, _, name = path.rpartition("/")
        members.append(member(f"{above}/.wh.{name}" if above else f".wh.{name}"))
    written: set[str] = set()
    for path in sorted(present):
        node = now[path]
        if node.kind == "socket":
            continue
        first = next((n for n in node.links if n in written), None)
        written.add(path)
        info = tarfile.TarInfo(path)
        info.mode, info.uid, info.gid, info.mtime = node.mode, node.uid, node.gid, node.mtime // 10**9
        info.pax_headers = {"mtime": f"{node.mtime // 10**9}.{node.mtime % 10**9:09}"}
        for key, value in node.xattrs:
            info.pax_headers[f"SCHILY.xattr.{key}"] = value.decode("utf-8", "surrogateescape")
        data = b""
        if first is not None:
            info.type, info.linkname = tarfile.LNKTYPE, first
        else:
            info.type = _TYPES[node.kind]
            if node.kind == "link":
                info.linkname = node.content
            elif node.kind in ("char", "block"):
                major, _, minor = node.content.partition(":")
                info.devmajor, info.devminor = int(major), int(minor)
            elif node.kind == "file":
                with open(f"{root}/{path}", "rb") as file:
                    data = file.read()
                info.size = len(data)
        members.append((info, data))
    return pack(members)


def unpack(store: Store, layer: api.Layer, data: bytes, *, limit: int = 1 << 40) -> None:
    """Apply an archive through the mount of an active layer, as a pull does."""
    with store.tree(layer) as fd:
        chunk = 1 << 16
        own = api.has_activation(store.driver)
        with WrittenBack(store.driver, layer, fd) if own else contextlib.nullcontext():
            apply((data[n : n + chunk] for n in range(0, len(data), chunk)), fd, limit=limit)


def tar_of(store: Store, found: Changes, upper: api.Layer) -> bytes:
    with store.mount(upper, read_only=True) as root:
        return of_changes(found, tree.read(root), os.path.join(root, "."))


def of_engine(store: Store, lower: api.Layer | None, upper: api.Layer) -> tuple[list[tuple[str, str]], bytes]:
    """(path, A C or D) of each change as the engine finds it in the way that the driver offers, and its archive."""
    driver, private = store.driver, ""
    with contextlib.ExitStack() as open_:
        below = open_.enter_context(store.tree(lower, read_only=True)) if lower is not None else None
        if api.has_changes(driver):
            root = open_.enter_context(store.tree(upper, read_only=True))
            found = engine.of_candidates(below, root, driver.changes(lower, upper))
        elif api.has_diff_tree(driver) and lower == upper.parent:
            diff = driver.diff_tree(upper)
            private = diff.xattr_prefix
            root = os.open(diff.directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            open_.callback(os.close, root)
            found = engine.of_diff_tree(below, root, diff.whiteout, private)
        else:
            root = open_.enter_context(store.tree(upper, read_only=True))
            found = engine.of_trees(below, root)
        data = b"".join(stream(found, root, private=private))
    return [(os.fsdecode(change.path) or ".", change.kind.value) for change in found.changes], data


def members(data: bytes) -> dict[str, tarfile.TarInfo]:
    """name → header, with `.` for the root and no slash at the end."""
    with tarfile.open(fileobj=io.BytesIO(data), errors="surrogateescape") as opened:
        return {info.name.strip("/") or ".": info for info in opened}
