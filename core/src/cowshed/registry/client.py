"""Pulling from registries (distribution-spec, Pull): manifests and blobs of one repository, from mirrors or itself."""

from __future__ import annotations

import time
from functools import partial

from cowshed import log
from cowshed.errors import BadUsage, RegistryError, Tampered
from cowshed.image.manifest import document
from cowshed.image.reference import check_digest
from cowshed.registry.endpoints import endpoints
from cowshed.registry.place import LONGEST_WAIT, TRIES, Missing, Place, Refused
from cowshed.registry.reach import AS_CONFIGURED
from cowshed.registry.referrers import entries_of, tag_of
from cowshed.registry.transport import Broken

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from typing import Any, TypeVar

    from cowshed.image.manifest import Descriptor
    from cowshed.registry.reach import Reach
    from cowshed.registry.transport import Response

    _T = TypeVar("_T")

ACCEPT = ", ".join((
    "application/vnd.oci.image.index.v1+json", "application/vnd.oci.image.manifest.v1+json",
    "application/vnd.docker.distribution.manifest.list.v2+json", "application/vnd.docker.distribution.manifest.v2+json",
))  # fmt: skip
_MANIFEST_LIMIT = 4 << 20
_BREAKS = 100  # of one download in all
_PROGRESS = 256 << 10  # bytes after which a download counts as getting on


class Client:
    """One repository of one registry. Safe for several threads; close it."""

    def __init__(
        self,
        registry: str,
        repository: str,
        settings: Mapping[str, Any],
        *,
        pause: float = 0.5,
        reach: Reach = AS_CONFIGURED,
    ) -> None:
        """settings: the registry's table of the configuration (`cowshed.registry.endpoints`). pause: seconds before
        the first repetition of what failed; it doubles. reach: what the command says of the registry. ConfigError,
        RegistryError (blocked)."""
        self.registry, self.repository, self._pause = registry, repository, pause
        self._places = [Place(e, repository, pause=pause) for e in endpoints(registry, settings, reach)]

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        for place in self._places:
            place.transport.close()

    def abort(self) -> None:
        """End all transfers at once, from any thread."""
        for place in self._places:
            place.abort()

    # ------------------------------------------------------------ what is asked for

    def manifest(self, wanted: str) -> tuple[bytes, str]:
        """(bytes, content type) of a manifest or index by tag or digest; the caller verifies the digest.

        Raises Missing, AuthError, RegistryError.
        """

        def ask(place: Place) -> tuple[bytes, str]:
            url = place.url("manifests", wanted)
            data, headers = place.document(url, {"Accept": ACCEPT}, limit=_MANIFEST_LIMIT, what=wanted)
            return data, headers.get("Content-Type", "")

        return self._anywhere(ask)

    def head(self, wanted: str) -> str:
        """The digest of what a tag or digest stands for, asked by HEAD; "" if nobody tells one that can be used.

        Of mirrors and registry the first that tells one counts. What it says is not verified: it only names something.
        """
        for place in [place for place in self._places if not place.dead]:
            try:
                url = place.url("manifests", wanted)
                answer = place.ask(url, {"Accept": ACCEPT}, method="HEAD", what=wanted, once=True)
                answer.close()
                return check_digest(answer.headers.get("Docker-Content-Digest", ""))
            except (BadUsage, RegistryError, Broken) as error:
                log.debug(f"HEAD of {wanted} at {place.endpoint.host}: {error}")
        return ""

    def referrers(self, digest: str) -> list[dict[str, Any]]:
        """What refers to a manifest by all that mirrors and registry say, those without the API by the fallback index
        (distribution-spec, Listing Referrers). One that has nothing, or cannot say, is passed over if another can.
        RegistryError, ImageError."""
        found: dict[str, dict[str, Any]] = {}
        trouble: RegistryError | None = None
        for place in self._places:
            try:
                for entry in _referring(place, digest):
                    found.setdefault(str(entry.get("digest")), entry)
            except RegistryError as error:
                trouble = error
        if trouble is not None and not found:
            raise trouble
        return list(found.values())

    def blob(self, blob: Descriptor, offset: int = 0) -> Iterator[bytes]:
        """The bytes of a blob from offset on, going on by Range where a connection broke.

        Never more than the blob's size; the caller verifies the digest. Raises Missing, AuthError, Tampered (the
        registry has another size), RegistryError.
        """
        return self._stream(blob, offset, blob.size)

    def part(self, blob: Descriptor, at: int, until: int) -> tuple[bool, Iterator[bytes]]:
        """(whether the registry can send a part, the bytes from at to until). One that cannot sends the whole blob from
        its beginning, which is what comes then if `at` is 0, and nothing if it is not. Raises as `blob` does."""
        try:
            place, answer = self._anywhere(partial(self._open, blob=blob, at=at, until=until))
            if answer.status == 206:
                return True, self._stream(blob, at, until, (place, _body(answer, blob, at, until)))
        except Broken:
            return True, self._stream(blob, at, until)
        if at:
            answer.drop()
            return False, iter(())
        return False, self._stream(blob, 0, blob.size, (place, _body(answer, blob, 0, blob.size)))

    def _stream(
        self, blob: Descriptor, at: int, until: int, begun: tuple[Place, Iterator[bytes]] | None = None
    ) -> Iterator[bytes]:
        counted, failures = at, 0
        place = self._places[-1]
        for _ in range(_BREAKS):
            try:
                if begun is None:
                    place, answer = self._anywhere(partial(self._open, blob=blob, at=at, until=until))
                    begun = place, _body(answer, blob, at, until)
                place, pieces = begun
                begun = None
                for piece in pieces:
                    at += len(piece)
                    yield piece
                if at == until:
                    return
                raise Broken(f"the answer ends after {at} of {blob.size} bytes")
            except Broken as error:
                if self._places[-1].aborted:
                    raise RegistryError(f"the download of {blob.digest[:19]} was cancelled") from None
                failures = 1 if at - counted >= _PROGRESS else failures + 1
                counted = at
                if failures > 1 and place is not self._places[-1]:
                    place.dead, failures = True, 1  # a mirror that does not get on
                if failures >= TRIES:
                    raise self._broke(blob, error) from None
                time.sleep(min(self._pause * 2 ** (failures - 1), LONGEST_WAIT))
        raise self._broke(blob, Broken(f"it broke {_BREAKS} times"))

    def _broke(self, blob: Descriptor, error: Broken) -> RegistryError:
        return RegistryError(
            f"the download of {blob.digest[:19]} from {self.registry} broke: {error}", remedy="pull again: it goes on"
        )

    def _open(self, place: Place, *, blob: Descriptor, at: int, until: int) -> tuple[Place, Response]:
        headers = {}
        if until < blob.size:
            headers = {"Range": f"bytes={at}-{until - 1}"}
        elif at:
            headers = {"Range": f"bytes={at}-"}
        try:
            return place, self._request(place, "blobs", blob.digest, headers)
        except Missing:
            for url in blob.urls:
                if url.startswith(("https://", "http://")):
                    return place, self._foreign(place, blob, url, headers)
            raise

    def _foreign(self, place: Place, blob: Descriptor, url: str, headers: dict[str, str]) -> Response:
        """A layer that is kept elsewhere (descriptor `urls`): never with credentials, never on this machine."""
        answer = place.transport.request(url, headers, trusted=False, home=place.endpoint.name)
        if answer.status not in (200, 206):
            answer.close()
            raise Missing(f"blob {blob.digest[:19]} is not found at {url[:100]}", remedy="check the image")
        return answer

    # ------------------------------------------------------------ asking

    def _anywhere(self, ask: Callable[[Place], _T]) -> _T:
        """Ask the mirrors, then the registry, whose word is the last one."""
        places = [place for place in self._places if not place.dead]
        for place in places[:-1]:
            try:
                return ask(place)
            except Missing:
                continue
            except (RegistryError, Broken):
                place.dead = True
        return ask(places[-1])

    def _request(self, place: Place, kind: str, name: str, headers: dict[str, str]) -> Response:
        """One answered request: 200 or 206."""
        return place.ask(place.url(kind, name), headers, fine=(200, 206), what=name)


def _referring(place: Place, digest: str) -> list[dict[str, Any]]:
    from cowshed.registry.repository import pages  # which needs this module

    documents: list[dict[str, Any]] = []
    try:
        documents = list(pages(place, place.url("referrers", digest), "referrers"))
    except Missing:
        documents = []
    except Refused as error:
        if error.answered not in (400, 405, 501):
            raise
    found = [entry for each in documents for entry in entries_of(each)]
    if found:
        return found
    try:
        url = place.url("manifests", tag_of(digest))
        data, _ = place.document(url, {"Accept": ACCEPT}, limit=_MANIFEST_LIMIT, what=f"what refers to {digest[:19]}")
    except Missing:
        return []
    return entries_of(document(data, f"the list of what refers to {digest[:19]}"))


def _body(answer: Response, blob: Descriptor, at: int, until: int) -> Iterator[bytes]:
    """The bytes from `at` to `until`, whether the server minds Range or not."""
    skip = 0
    if answer.status == 206:
        began, whole = _content_range(answer.headers.get("Content-Range", ""))
        if began != at or whole not in (None, blob.size):
            answer.drop()
            raise _size(blob) if began == at else Broken("the registry sends another part than was asked for")
    else:
        skip = at
        length = answer.headers.get("Content-Length")
        if length is not None and length.isdigit() and int(length) != blob.size:
            answer.drop()
            raise _size(blob)

    def pieces() -> Iterator[bytes]:
        left, skipping = until - at, skip
        try:
            for piece in answer.pieces():
                if skipping:
                    piece, skipping = piece[skipping:], max(0, skipping - len(piece))
                if len(piece) > left:
                    if until == blob.size:
                        raise _size(blob)
                    piece = piece[:left]  # of a server that sends more than was asked for
                left -= len(piece)
                if piece:
                    yield piece
                if not left and until < blob.size:
                    answer.close()
                    return
        except BaseException:
            answer.drop()
            raise

    return pieces()


def _size(blob: Descriptor) -> Tampered:
    return Tampered(
        f"blob {blob.digest[:19]} has another size in the registry than the {blob.size} bytes of its manifest",
        remedy="the image is broken, or somebody has changed it",
    )


def _content_range(text: str) -> tuple[int, int | None]:
    """(first byte, size of the whole) of a Content-Range; -1 if it cannot be read (RFC 9110 section 14.4)."""
    unit, _, rest = text.partition(" ")
    span, _, whole = rest.partition("/")
    first = span.partition("-")[0].strip()
    if unit.lower() != "bytes" or not first.isdigit():
        return -1, None
    return int(first), int(whole) if whole.isdigit() else None
