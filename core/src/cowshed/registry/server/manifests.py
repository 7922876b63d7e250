"""Manifests and indexes: reading, storing as they came, deleting; tags (distribution-spec, end-3, 7, 9).

What of a manifest is looked at is what the registry answers for: its type, what it refers to, its subject. All else is
the clients' business, and nothing is ever written anew.
"""

from __future__ import annotations

import contextlib
import json
import os

from cowshed.registry.server import names
from cowshed.registry.server.message import Answer
from cowshed.registry.server.refusals import REMOVED, Refusal

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from cowshed.registry.server.message import Request
    from cowshed.registry.server.registry import Registry
    from cowshed.registry.server.store import Index, Repository
    from cowshed.registry.server.uploads import Uploads

LIMIT = 4 << 20  # bytes
TAGS = 100  # that one request may give
OCI_INDEX = "application/vnd.oci.image.index.v1+json"
OCI_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
# type: whether it lists manifests
TYPES = {
    OCI_INDEX: True,
    OCI_MANIFEST: False,
    "application/vnd.docker.distribution.manifest.list.v2+json": True,
    "application/vnd.docker.distribution.manifest.v2+json": False,
}
_ELSEWHERE = (".nondistributable.", ".foreign.")  # layers that need not be here


def read(registry: Registry, request: Request, name: str, wanted: str) -> Answer:
    repository = registry.store.repository(name)
    if registry.upstream is not None:
        registry.upstream.manifest(repository, wanted)
    digest, kind = _find(repository, wanted)
    headers = [("Docker-Content-Digest", digest), ("ETag", f'"{digest}"')]
    if request.headers.get("if-none-match") == f'"{digest}"':
        return Answer(304, headers)
    try:
        return Answer(200, headers, repository.read_blob(digest, LIMIT), kind=kind)
    except FileNotFoundError:
        raise Refusal("MANIFEST_UNKNOWN", f"{name} has no manifest {digest}") from None


def write(registry: Registry, request: Request, name: str, wanted: str) -> Answer:
    by_digest = ":" in wanted
    tags = request.all("tag") if by_digest else [wanted]
    if len(tags) > TAGS:
        raise Refusal("UNSUPPORTED", f"not more than {TAGS} tags at once", status=414)
    for tag in tags:
        if not names.is_tag(tag):
            raise Refusal("MANIFEST_INVALID", f"{tag[:80]!r} is no tag")
    algorithm = names.check_digest(wanted).partition(":")[0] if by_digest else "sha256"
    data = request.body.read(LIMIT)
    digest = names.digest_of(data, algorithm)
    if by_digest and digest != wanted:
        raise Refusal("DIGEST_INVALID", f"what was received is {digest}, not {wanted}")
    kind = request.headers.get("content-type", "").partition(";")[0].strip()
    manifest = parse(data, kind)
    kind = kind if kind in TYPES else manifest["mediaType"]
    repository = registry.store.repository(name)

    def hold(index: Index) -> None:
        _hold_conditions(index, tags, request.headers)
        _hold(repository, manifest, kind)

    _hold(repository, manifest, kind)
    _put(registry.uploads, repository, data, digest, kind, tags, hold)  # again: under the lock nothing is collected
    headers = [("Location", f"/v2/{name}/manifests/{wanted}"), ("Docker-Content-Digest", digest)]
    if by_digest:
        headers += [("OCI-Tag", ", ".join(tags[at : at + 10])) for at in range(0, len(tags), 10)]
    if manifest.get("subject"):
        headers.append(("OCI-Subject", manifest["subject"]["digest"]))
    return Answer(201, headers)


def delete(registry: Registry, request: Request, name: str, wanted: str) -> Answer:
    repository = registry.store.repository(name)
    unknown = Refusal("MANIFEST_UNKNOWN", f"{name} has no manifest {wanted[:128]}")
    digest = "" if ":" not in wanted else names.check_digest(wanted)

    def drop_tag(index: Index) -> None:
        if index.tags.pop(wanted, None) is None:
            raise unknown

    def drop(index: Index) -> None:
        if digest not in index.entries and child_kind(repository, index, digest) is None:
            raise unknown
        index.entries.pop(digest, None)
        index.tags = {tag: one for tag, one in index.tags.items() if one != digest}
        repository.facts.pop(digest, None)

    try:
        repository.change(drop if digest else drop_tag)
    except FileNotFoundError:
        raise unknown from None
    if digest:
        with repository.locked(), contextlib.suppress(FileNotFoundError):
            if digest not in repository.index().entries:  # nobody has pushed it again
                repository.unlink(digest)
    return Answer(202)


def is_here(repository: Repository, wanted: str) -> bool:
    try:
        digest, _ = _find(repository, wanted)
    except Refusal:
        return False
    return os.path.exists(repository.blob_path(digest))  # it may have been damaged, and was moved aside


def accept(uploads: Uploads, repository: Repository, data: bytes, kind: str, wanted: str) -> dict[str, Any]:
    """Store a manifest of another registry under the tag or digest that it was asked for with; what it says. Its blobs
    come when they are asked for. Refusal."""
    if ":" not in wanted:
        _check_tag(wanted)
    algorithm = names.check_digest(wanted).partition(":")[0] if ":" in wanted else "sha256"
    manifest = parse(data, kind)
    kind = kind if kind in TYPES else manifest["mediaType"]
    digest = names.digest_of(data, algorithm)
    if ":" in wanted and digest != wanted:
        raise Refusal("DIGEST_INVALID", f"what was received is {digest}, not {wanted}")
    _put(uploads, repository, data, digest, kind, [] if ":" in wanted else [wanted])
    return manifest


# ------------------------------------------------------------ what manifests are


def parse(data: bytes, kind: str) -> dict[str, Any]:
    """A manifest that is what its type says. kind: the type that came with it, "" for none. Refusal."""
    try:
        manifest = json.loads(data)
    except (ValueError, RecursionError):
        raise _invalid("it is no JSON") from None
    if not isinstance(manifest, dict):
        raise _invalid("it is no object")
    inner = manifest.get("mediaType")
    if kind not in TYPES and (kind not in ("", "application/json", "application/octet-stream") or inner not in TYPES):
        raise _invalid(f"its type {(kind or str(inner))[:120]!r} is not among {', '.join(TYPES)}")
    if kind in TYPES and inner not in (None, kind):
        raise _invalid(f"it says that it is {str(inner)[:120]!r}, and came as {kind!r}")
    if manifest.get("schemaVersion") != 2:
        raise _invalid("its schemaVersion is not 2")
    listing = TYPES[kind if kind in TYPES else str(inner)]
    if listing and ("config" in manifest or "layers" in manifest):
        raise _invalid("it has manifests as well as layers")
    if not listing and "manifests" in manifest:
        raise _invalid("it has layers as well as manifests")
    if not listing:
        _check_descriptor(manifest.get("config"), "config")
    for descriptor in _list(manifest, "manifests" if listing else "layers"):
        _check_descriptor(descriptor, "a descriptor")
    if manifest.get("subject") is not None:
        _check_descriptor(manifest["subject"], "subject")
    if not isinstance(manifest.get("annotations") or {}, dict):
        raise _invalid("its annotations are no object")
    return manifest


def references(manifest: dict[str, Any]) -> tuple[list[str], list[str]]:
    """(blobs, manifests) that a parsed manifest stands on; its subject is not among them."""
    blobs = [manifest["config"]["digest"]] if isinstance(manifest.get("config"), dict) else []
    blobs += [one["digest"] for one in manifest.get("layers") or []]
    return blobs, [one["digest"] for one in manifest.get("manifests") or []]


def needed(manifest: dict[str, Any]) -> list[dict[str, Any]]:
    """What has to be here for a parsed manifest, as descriptors: not layers that are elsewhere."""
    every = [manifest["config"]] if isinstance(manifest.get("config"), dict) else []
    every += manifest.get("layers") or []
    return [
        one for one in every if not (one.get("urls") or any(word in str(one.get("mediaType")) for word in _ELSEWHERE))
    ]


def _put(
    uploads: Uploads,
    repository: Repository,
    data: bytes,
    digest: str,
    kind: str,
    tags: list[str],
    hold: Callable[[Index], None] = lambda index: None,
) -> None:
    """Store a parsed manifest whose digest was computed, under these tags. hold: raises, under the lock, if it cannot
    be taken. Refusal."""
    for last in (False, False, True):  # a collection without a grace period may come between
        try:
            _put_once(uploads, repository, data, digest, kind, tags, hold)
            return
        except Refusal as error:
            if error.status != REMOVED or last:
                raise


def _put_once(
    uploads: Uploads,
    repository: Repository,
    data: bytes,
    digest: str,
    kind: str,
    tags: list[str],
    hold: Callable[[Index], None],
) -> None:
    repository.make()
    upload = None
    if not os.path.exists(repository.store.pool_path(digest)):
        upload = uploads.begin(repository, digest.partition(":")[0])

    def enter(index: Index) -> None:
        hold(index)
        if upload is not None:
            upload.finish(digest)
        elif not repository.link(digest):
            raise Refusal("MANIFEST_INVALID", "the manifest was removed while it was stored", status=REMOVED)
        entry = {"mediaType": kind, "digest": digest, "size": len(data)}
        index.entries[digest] = {**index.entries.get(digest, {}), **entry}
        index.tags.update(dict.fromkeys(tags, digest))
        repository.facts.pop(digest, None)

    try:
        if upload is not None:
            upload.append(memoryview(data))
            upload.sync()  # not under the lock: those of several are synced at once
        repository.change(enter)
    finally:
        if upload is not None:
            upload.give_up()
            upload.close()


def child_kind(repository: Repository, index: Index, digest: str) -> str | None:
    """The type of a manifest that only indexes name (a layout of another tool); None if none does."""
    if not os.path.exists(repository.blob_path(digest)):
        return None
    seen: set[str] = set()
    queue = [(one, str(entry.get("mediaType"))) for one, entry in index.entries.items()]
    while queue:
        one, type_ = queue.pop()
        if one in seen or not TYPES.get(type_):
            continue
        seen.add(one)
        try:
            listed = parse(repository.read_blob(one, LIMIT), type_).get("manifests") or []
        except (Refusal, FileNotFoundError):
            continue
        for child in listed:
            kind = str(child.get("mediaType"))
            if child["digest"] == digest and kind in TYPES:
                return kind
            queue.append((child["digest"], kind))
    return None


def _find(repository: Repository, wanted: str) -> tuple[str, str]:
    """(digest, type) of a manifest by tag or digest. Refusal."""
    index = repository.index()
    unknown = Refusal("MANIFEST_UNKNOWN", f"{repository.name} has no manifest {wanted[:128]}")
    if ":" not in wanted:
        _check_tag(wanted)
        if wanted not in index.tags:
            raise unknown
        digest = index.tags[wanted]
    else:
        digest = names.check_digest(wanted)
    entry = index.entries.get(digest)
    kind = entry.get("mediaType") if entry else child_kind(repository, index, digest)
    if not isinstance(kind, str) or not kind.isprintable():
        raise unknown
    return digest, kind


def _hold(repository: Repository, manifest: dict[str, Any], kind: str) -> None:
    """All blobs that a manifest stands on are here. What an index lists may be missing: parts of it can be copied."""
    if TYPES[kind]:
        for listed in references(manifest)[1]:
            with contextlib.suppress(FileNotFoundError):
                repository.touch(names.check_digest(listed))
        return
    for one in needed(manifest):
        digest = names.check_digest(one["digest"])
        try:
            size = repository.touch(digest)
        except FileNotFoundError:
            raise Refusal("MANIFEST_BLOB_UNKNOWN", f"{repository.name} has no blob {digest}", detail=digest) from None
        if size != one["size"]:
            raise _invalid(f"{digest} has {size} bytes, not {one['size']}")


def _hold_conditions(index: Index, tags: list[str], headers: dict[str, str]) -> None:
    match, none = headers.get("if-match"), headers.get("if-none-match")
    for tag in tags:
        there = index.tags.get(tag)
        if (match is not None and (there is None or match not in ("*", f'"{there}"'))) or (
            none is not None and there is not None and none in ("*", f'"{there}"')
        ):
            raise Refusal("DENIED", f"{tag} is {there or 'not there'}: it was changed meanwhile", status=412)


def _check_tag(text: str) -> None:
    if not names.is_tag(text):
        raise Refusal("MANIFEST_UNKNOWN", f"{text[:80]!r} is neither a tag nor a digest")


def _check_descriptor(descriptor: Any, what: str) -> None:
    if not isinstance(descriptor, dict):
        raise _invalid(f"{what} is missing or no object")
    digest, size = descriptor.get("digest"), descriptor.get("size")
    if not isinstance(digest, str) or not names.is_digest(digest):
        raise _invalid(f"{what} has no digest")
    if not isinstance(size, int) or isinstance(size, bool) or size < 0:
        raise _invalid(f"{what} has no size")


def _list(manifest: dict[str, Any], key: str) -> list[Any]:
    found = manifest.get(key)
    if found is not None and not isinstance(found, list):
        raise _invalid(f"{key} is no list")
    return found or []


def _invalid(text: str) -> Refusal:
    return Refusal("MANIFEST_INVALID", f"the manifest cannot be taken: {text}")
