"""Everything that can be done in one repository of a registry but pulling from it: look, upload, name, delete.

    with Repository("registry.example:5000", "team/app", settings, actions=PUSH) as there:
        how = there.send(blob, "/path/of/the/blob", mount=("team/base",))   # "there", "mounted" or "sent"
        there.put_manifest(data, media_type, tag="1.2")

`settings` is the registry's table of the configuration. Writing goes to the registry itself, never to a mirror.
All of it raises Missing (404), AuthError, Refused (another status), RegistryError; threads may share it.
"""

from __future__ import annotations

import hashlib
import json
import urllib.parse

from cowshed import digests
from cowshed.errors import BadUsage, RegistryError, Tampered
from cowshed.image.reference import check_digest
from cowshed.registry import referrers
from cowshed.registry.client import ACCEPT
from cowshed.registry.endpoints import itself
from cowshed.registry.place import Missing, Place, Refused
from cowshed.registry.reach import AS_CONFIGURED
from cowshed.registry.transport import Body, joined, origin
from cowshed.registry.upload import PIECE, WHOLE, Upload
from cowshed.storage.record import record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from typing import Any

    from cowshed.image.manifest import Descriptor
    from cowshed.registry.reach import Reach
    from cowshed.registry.upload import Source

PULL, PUSH, DELETE = "pull", "pull,push", "delete,pull"
MANIFEST_LIMIT = 4 << 20
_LIST_LIMIT = 16 << 20  # bytes of one page of a listing
_PAGES = 10_000
_PER_PAGE = 1000


@record(frozen=True)
class Head:
    """What a registry says of a manifest or a blob without sending it."""

    digest: str  # "" if it does not say
    size: int  # -1 if it does not say
    media_type: str


class Repository:
    """See the module. Close it, or use it as a context manager."""

    def __init__(
        self, registry: str, repository: str, settings: Mapping[str, Any], *, actions: str = PULL, pause: float = 0.5,
        whole: int = WHOLE, piece: int = PIECE, reach: Reach = AS_CONFIGURED,
    ) -> None:  # fmt: skip
        """actions: PULL (look only), PUSH or DELETE. reach: what the command says of the registry. whole: bytes of
        the largest blob that is sent in one request, piece: of the parts of larger ones. pause: seconds before
        the first repetition of what failed."""
        self.registry, self.repository = registry, repository
        self._pause, self._whole, self._piece = pause, whole, piece
        self._place = Place(itself(registry, settings, reach), repository, actions=actions, pause=pause)

    def __enter__(self) -> Repository:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._place.transport.close()

    def abort(self) -> None:
        """End all transfers at once, from any thread; uploads that are open are cancelled at the registry."""
        self._place.abort()

    # ------------------------------------------------------------ blobs

    def has(self, blob: Descriptor) -> bool:
        """Whether the repository has a blob. Tampered if it is there with another size."""
        found = self._head("blobs", blob.digest)
        if found is None:
            return False
        if found.size >= 0 and found.size != blob.size:
            raise Tampered(
                f"{self.registry} has blob {blob.digest[:19]} with {found.size} bytes instead of {blob.size}"
            )
        return True

    def send(
        self, blob: Descriptor, source: Source, *, mount: Sequence[str] = (),
        told: Callable[[int], None] = lambda sent: None, look: bool = True,
    ) -> str:  # fmt: skip
        """Bring a blob into the repository: "there" if it was, "mounted" if the registry took it from one of the
        repositories `mount` (tried in turn), else "sent".

        source: the path of a file, or what gives the bytes from an offset on; it may be called several times. told is
        called with the number of bytes sent. look: whether to ask first if it is there.
        """
        check_digest(blob.digest)
        if look and self.has(blob):
            return "there"
        upload = Upload(self._place, blob, source, pause=self._pause, told=told, whole=self._whole, piece=self._piece)
        try:
            for other in mount:
                if other != self.repository and upload.mount(other):
                    return "mounted"
        except BaseException:
            upload.cancel()
            raise
        upload.send()
        return "sent"

    def blob(self, blob: Descriptor) -> bytes:
        """A small blob, whole and verified. Tampered."""
        url = self._place.url("blobs", check_digest(blob.digest))
        data, _ = self._place.document(url, limit=blob.size, what=blob.digest)
        _verify(data, blob.digest)
        return data

    def delete_blob(self, digest: str) -> None:
        """Take a blob out of the repository, whatever names it. Refused by registries that do not do that."""
        self._delete(check_digest(digest), "blobs")

    # ------------------------------------------------------------ manifests and tags

    def head(self, wanted: str) -> Head | None:
        """What a tag or digest stands for, None if there is none."""
        return self._head("manifests", wanted)

    def manifest(self, wanted: str) -> tuple[bytes, str, str]:
        """(bytes, media type, entity tag or "") of a manifest or index; by digest it is verified."""
        url = self._place.url("manifests", wanted)
        data, headers = self._place.document(url, {"Accept": ACCEPT}, limit=MANIFEST_LIMIT, what=wanted)
        if ":" in wanted:
            _verify(data, wanted)
        return data, headers.get("Content-Type", "").partition(";")[0].strip(), headers.get("ETag", "")

    def put_manifest(
        self, data: bytes, media_type: str, *, tag: str = "", more_tags: Sequence[str] = (), digest: str = "",
        if_match: str = "",
    ) -> str:  # fmt: skip
        """Put a manifest or index, byte for byte, under its digest and these tags; the digest.

        digest: its own of another algorithm than sha256. if_match: an entity tag that what stands there must have, else
        Refused with status 412. Where the registry has no referrers API and the manifest a subject, it is written into
        the subject's fallback index. What the manifest names must be there.
        """
        if len(data) > MANIFEST_LIMIT:
            raise BadUsage(f"the manifest has {len(data)} bytes; {MANIFEST_LIMIT} are allowed")
        if digest:
            _verify(data, digest)
        else:
            digest = "sha256:" + hashlib.sha256(data).hexdigest()
        first = tag or (digest if not more_tags else "")
        tags = [t for t in dict.fromkeys((tag, *more_tags)) if t]
        if len(tags) > 1:
            first = digest
        headers = {"Content-Type": media_type}
        if if_match:
            headers["If-Match"] = if_match
        url = self._place.url("manifests", first or tags[0])
        if len(tags) > 1:
            url += ("&" if "?" in url else "?") + urllib.parse.urlencode([("tag", t) for t in tags])
        subject = referrers.subject_of(data)
        done = self._put(url, data, headers, digest)
        if len(tags) > 1:
            got = {t.strip() for line in done.get_all("OCI-Tag") or () for t in line.split(",")}
            for each in tags:
                if each not in got:  # a registry that puts one tag at a time
                    done = self._put(self._place.url("manifests", each), data, headers, digest)
        if subject and not done.get("OCI-Subject"):
            referrers.add(self, subject, data, media_type, digest)
        return digest

    def delete_tag(self, tag: str) -> None:
        """Take a name away; what it stood for stays. Refused with 405 or 400 by registries that cannot do that."""
        self._delete(tag)

    def delete_manifest(self, digest: str) -> None:
        """Delete a manifest, all tags of it too. Where the registry has no referrers API it is taken out of the
        fallback index of its subject."""
        check_digest(digest)
        data, _, _ = self.manifest(digest)
        subject = referrers.subject_of(data)
        self._delete(digest)
        if subject and not self._knows_referrers(subject):
            referrers.remove(self, subject, digest)

    def tags(self) -> Iterator[str]:
        """All tags, page by page."""
        for page in self._pages(self._place.url("tags", "list"), "tags"):
            yield from _texts(page.get("tags"))

    def referrers(self, digest: str, artifact_type: str = "") -> list[dict[str, Any]]:
        """The descriptors of the manifests that have this one as their subject: from the API, or where there is none
        from the fallback index (distribution-spec, Listing Referrers). [] for none."""
        check_digest(digest)
        url = self._place.url("referrers", digest)
        query = urllib.parse.urlencode({"artifactType": artifact_type}) if artifact_type else ""
        found: list[dict[str, Any]] = []
        try:
            for page in self._pages(f"{url}{'&' if '?' in url else '?'}{query}" if query else url, "referrers"):
                listed = page.get("manifests")
                found += [entry for entry in listed if isinstance(entry, dict)] if isinstance(listed, list) else []
        except (Missing, Refused) as error:
            if isinstance(error, Refused) and error.answered not in (400, 405, 501):
                raise
            found = referrers.fallback(self, digest)
            return referrers.of_type(self, found, artifact_type)
        return [e for e in found if not artifact_type or e.get("artifactType") == artifact_type]

    # ------------------------------------------------------------ asking

    def _head(self, kind: str, name: str) -> Head | None:
        headers = {"Accept": ACCEPT} if kind == "manifests" else {}
        try:
            answer = self._place.ask(self._place.url(kind, name), headers, method="HEAD", what=name)
        except Missing:
            return None
        answer.close()
        length = answer.headers.get("Content-Length", "")
        size = int(length) if length.isascii() and length.isdigit() and len(length) < 19 else -1
        return Head(answer.headers.get("Docker-Content-Digest", ""), size,
                    answer.headers.get("Content-Type", "").partition(";")[0].strip())  # fmt: skip

    def _put(self, url: str, data: bytes, headers: dict[str, str], digest: str) -> Any:
        answer = self._place.ask(url, headers, method="PUT", body=Body.of(data), fine=(201, 200, 202, 204), what=digest)
        answer.close()
        said = answer.headers.get("Docker-Content-Digest")
        if said and said != digest and said.startswith("sha256:") == digest.startswith("sha256:"):
            raise Tampered(f"{self.registry} calls the manifest {said[:100]!r} instead of {digest[:19]}")
        return answer.headers

    def _delete(self, name: str, kind: str = "manifests") -> None:
        answer = self._place.ask(self._place.url(kind, name), method="DELETE", fine=(202, 200, 204), what=name)
        answer.close()

    def _knows_referrers(self, digest: str) -> bool:
        try:
            self._place.ask(self._place.url("referrers", digest), what=digest).close()
        except (Missing, Refused):
            return False
        return True

    def _pages(self, url: str, what: str) -> Iterator[dict[str, Any]]:
        yield from pages(self._place, url, what)


def catalog(
    registry: str, settings: Mapping[str, Any], *, pause: float = 0.5, reach: Reach = AS_CONFIGURED
) -> Iterator[str]:
    """The names of all repositories that a registry lists. Many registries refuse that. RegistryError, AuthError."""
    place = Place(itself(registry, settings, reach), "", actions="*", pause=pause)
    try:
        for page in pages(place, f"{place.endpoint.url}/v2/{place.endpoint.prefix}_catalog", "repositories"):
            yield from _texts(page.get("repositories"))
    finally:
        place.transport.close()


def pages(place: Place, url: str, what: str) -> Iterator[dict[str, Any]]:
    """The JSON documents of a listing, following `Link` with rel="next" (distribution-spec, Listing Tags) as long as it
    stays with the registry."""
    if what != "referrers":
        url += ("&" if "?" in url else "?") + f"n={_PER_PAGE}"
    seen: set[str] = set()
    for _ in range(_PAGES):
        seen.add(url)
        accept = {"Accept": "application/json, application/vnd.oci.image.index.v1+json"}
        data, headers = place.document(url, accept, limit=_LIST_LIMIT, what=f"the list of {what}")
        try:
            value = json.loads(data)
        except (ValueError, RecursionError):
            value = None
        if not isinstance(value, dict):
            raise RegistryError(f"{place.endpoint.host} does not list {what} in JSON")
        yield value
        following = next_page(headers.get_all("Link") or ())
        if not following:
            return
        url = joined(url, following)
        if origin(url) != origin(place.endpoint.url) or url in seen:
            raise RegistryError(
                f"{place.endpoint.host} continues its listing at {url[:100]!r}, which is not to be trusted"
            )
    raise RegistryError(f"{place.endpoint.host} lists {what} on more than {_PAGES} pages")


def next_page(links: Sequence[str]) -> str:
    """The target of the link with rel="next" (RFC 8288), "" for none."""
    for line in links:
        for part in line.split("<")[1:]:
            target, _, rest = part.partition(">")
            parameters = rest.partition(",")[0].replace(" ", "").lower()
            if 'rel="next"' in parameters or "rel=next" in parameters:
                return target
    return ""


def _texts(value: Any) -> list[str]:
    """Names from outside; what could steer a terminal is none."""
    return [e for e in value if isinstance(e, str) and e.isprintable()] if isinstance(value, list) else []


def _verify(data: bytes, digest: str) -> None:
    algorithm = check_digest(digest).partition(":")[0]
    if f"{algorithm}:{digests.new(algorithm, data).hexdigest()}" != digest:
        raise Tampered(f"the registry sends other bytes than {digest[:19]} names")
