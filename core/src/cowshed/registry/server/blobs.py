"""Blobs: reading, uploading at once, in a stream or in chunks, mounting, deleting (distribution-spec, end-2, 4-6, 10,
11, 13, 14)."""

from __future__ import annotations

from cowshed.registry.server import names
from cowshed.registry.server.message import Answer, File, byte_range
from cowshed.registry.server.refusals import Refusal

TYPE_CHECKING = False
if TYPE_CHECKING:
    from cowshed.registry.server.message import Request
    from cowshed.registry.server.registry import Registry
    from cowshed.registry.server.store import Repository
    from cowshed.registry.server.uploads import Upload

_OCTETS = "application/octet-stream"


def read(registry: Registry, request: Request, name: str, wanted: str) -> Answer:
    digest = names.check_digest(wanted)
    repository = registry.store.repository(name)
    found = _open(registry, repository, digest)
    try:
        headers = [("Docker-Content-Digest", digest), ("Accept-Ranges", "bytes"), ("ETag", f'"{digest}"')]
        if request.headers.get("if-none-match") == f'"{digest}"':
            found.count = 0
            return Answer(304, headers, found)
        size, status = found.count, 200
        said = request.headers.get("range")
        if said is not None and request.headers.get("if-range", f'"{digest}"') == f'"{digest}"':
            part = byte_range(said, size)
            if part is not None:
                found.offset, found.count = part
                headers.append(("Content-Range", f"bytes {part[0]}-{part[0] + part[1] - 1}/{size}"))
                status = 206
    except BaseException:
        Answer(0, body=found).close()
        raise
    return Answer(status, headers, found, kind=_OCTETS)


def head(registry: Registry, request: Request, name: str, wanted: str) -> Answer:
    if not registry.read_only:  # who asks may leave out its upload: the blob is to stay for a while
        try:
            registry.store.repository(name).touch(names.check_digest(wanted))
        except FileNotFoundError:
            raise _unknown(wanted, name) from None
    return read(registry, request, name, wanted)


def delete(registry: Registry, request: Request, name: str, wanted: str) -> Answer:
    digest = names.check_digest(wanted)
    repository = registry.store.repository(name)
    try:
        with repository.locked():
            if digest in repository.index().entries:
                raise Refusal("UNSUPPORTED", "this is a manifest: it is deleted as one")
            repository.unlink(digest)
    except FileNotFoundError:
        raise _unknown(digest, name) from None
    return Answer(202)


def begin(registry: Registry, request: Request, name: str, wanted: str) -> Answer:
    """POST: a mount, a whole blob, or the begin of an upload."""
    repository = registry.store.repository(name)
    query = request.query
    if "mount" in query:
        digest = names.check_digest(query["mount"])
        if _mount(registry, request, repository, digest, query.get("from", "")):
            return _created(name, digest)
    digest = names.check_digest(query["digest"]) if "digest" in query else ""
    algorithm = digest.partition(":")[0] or query.get("digest-algorithm", "sha256")
    with registry.uploads.begin(repository, algorithm) as upload:
        if not digest or (request.body.over and request.body.length == 0 and "content-type" not in request.headers):
            return _accepted(202, name, upload)
        try:
            upload.receive(request.body)
            upload.finish(digest)
        except BaseException:
            upload.give_up()
            raise
    return _created(name, digest)


def append(registry: Registry, request: Request, name: str, wanted: str) -> Answer:
    """PATCH: a chunk, or a stream of unknown length."""
    with registry.uploads.resume(registry.store.repository(name), wanted) as upload:
        _receive(request, upload, name)
        return _accepted(202, name, upload)


def finish(registry: Registry, request: Request, name: str, wanted: str) -> Answer:
    """PUT: the last chunk, or all of it, or nothing more; then the digest must be right."""
    if "digest" not in request.query:
        raise Refusal("DIGEST_INVALID", "the parameter digest is missing")
    digest = names.check_digest(request.query["digest"])
    with registry.uploads.resume(registry.store.repository(name), wanted) as upload:
        _receive(request, upload, name)
        upload.finish(digest)
    return _created(name, digest)


def status(registry: Registry, request: Request, name: str, wanted: str) -> Answer:
    with registry.uploads.resume(registry.store.repository(name), wanted) as upload:
        return _accepted(204, name, upload)


def cancel(registry: Registry, request: Request, name: str, wanted: str) -> Answer:
    with registry.uploads.resume(registry.store.repository(name), wanted) as upload:
        upload.cancel()
    return Answer(204)


def _open(registry: Registry, repository: Repository, digest: str) -> File:
    try:
        fd, size = repository.open_blob(digest)
    except FileNotFoundError:
        if registry.upstream is not None:
            return registry.upstream.blob(repository, digest)
        raise _unknown(digest, repository.name) from None
    return File(fd, 0, size)


def _mount(registry: Registry, request: Request, repository: Repository, digest: str, source: str) -> bool:
    """Whether the blob is there now. The source is one that the client may read; without one, any such."""
    try:
        repository.touch(digest)
        return True
    except FileNotFoundError:
        pass
    candidates = [names.check_name(source)] if source else registry.store.names()
    for name in candidates:
        if not registry.access.allows(request, name, "pull"):
            continue
        try:
            registry.store.repository(name).touch(digest)
        except FileNotFoundError:
            continue
        return repository.link(digest)
    return False


def _receive(request: Request, upload: Upload, name: str) -> None:
    said = request.content_range()
    if said is not None:
        first, last = said
        if first != upload.size:
            raise Refusal(
                "BLOB_UPLOAD_INVALID", f"{upload.size} bytes are here, and the chunk begins at {first}", status=416,
                headers=tuple(_where(name, upload)),
            )  # fmt: skip
        if request.body.length >= 0 and request.body.length != last - first + 1:
            raise Refusal("SIZE_INVALID", "Content-Length is not what Content-Range says")
    count = upload.receive(request.body)
    if said is not None and count != said[1] - said[0] + 1:
        raise Refusal("SIZE_INVALID", f"{count} bytes came, not what Content-Range says")


def _where(name: str, upload: Upload) -> list[tuple[str, str]]:
    return [
        ("Location", f"/v2/{name}/blobs/uploads/{upload.name}"),
        ("Range", f"0-{max(upload.size - 1, 0)}"),
        ("Docker-Upload-UUID", upload.name),
    ]


def _accepted(status: int, name: str, upload: Upload) -> Answer:
    return Answer(status, _where(name, upload))


def _created(name: str, digest: str) -> Answer:
    return Answer(201, [("Location", f"/v2/{name}/blobs/{digest}"), ("Docker-Content-Digest", digest)])


def _unknown(digest: str, name: str) -> Refusal:
    return Refusal("BLOB_UNKNOWN", f"{name} has no blob {digest}")
