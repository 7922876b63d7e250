"""Uploading one blob (distribution-spec, Pushing blobs): in one request, or in pieces that go on where one broke.

The registry's word on how much it has (`Range`) decides where we go on, never our own count. A session that will not
be finished is cancelled, so that nothing of it stays there.
"""

from __future__ import annotations

import time
import urllib.parse

from cowshed.errors import AuthError, RegistryError, Tampered
from cowshed.registry.place import LONGEST_WAIT, TRIES, Missing, Refused
from cowshed.registry.transport import Body, Broken, Shrunk, joined, printable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from typing import Any

    from cowshed.image.manifest import Descriptor
    from cowshed.registry.place import Place
    from cowshed.registry.transport import Response

    Source = str | Callable[[int], Iterable[bytes]]

WHOLE = 256 << 20  # bytes that are sent in one request; more goes in pieces, whose arrival is known one by one
PIECE = 64 << 20
_AFTER_BREAK = 16 << 20  # bytes of a piece where the connection is known to break
_SMALLEST = 1 << 20
_SESSIONS = 3  # that are begun anew when the registry has lost one
_PASSING = (416, 500, 502, 503, 504)  # after which the registry is asked how much it has
_OCTETS = {"Content-Type": "application/octet-stream"}


class Upload:
    """One blob on its way to a registry."""

    def __init__(
        self, place: Place, blob: Descriptor, source: Source, *, pause: float, told: Callable[[int], None],
        whole: int = WHOLE, piece: int = PIECE,
    ) -> None:  # fmt: skip
        """source: the path of a file with the blob, or what gives its bytes from an offset on. told(bytes) is called as
        they go. whole, piece: bytes; see above."""
        self._place, self._blob, self._source, self._pause, self._told = place, blob, source, pause, told
        self._whole, self._piece = whole, piece
        self._location = ""
        self._least = 0
        self._failures = 0

    def mount(self, repository: str) -> bool:
        """Have the registry take the blob from another of its repositories. False if it does not, or does not let us
        pull from there; a session that it has begun instead is used by `send`. RegistryError."""
        query = urllib.parse.urlencode({"mount": self._blob.digest, "from": repository}, safe="/")
        self._place.authorizer.also(repository)
        try:
            answer = self._place.ask(self._begin_url(query), method="POST", fine=(201, 202), what=self._blob.digest)
        except (AuthError, Missing, Refused):
            self._place.authorizer.not_also(repository)
            return False
        answer.close()
        if answer.status == 201:
            return True
        self._follow(answer)
        return False

    def send(self) -> None:
        """Send the blob. Raises RegistryError, AuthError, Tampered (the source has other bytes than the descriptor)."""
        try:
            for _ in range(_SESSIONS):
                if not self._location:
                    self._begin()
                if self._finish():
                    return
                self._location = ""  # the registry does not know the session any more
            raise self._broke("the registry lost every session")
        except Shrunk as error:
            raise Tampered(f"blob {self._blob.digest[:19]} cannot be sent: {error}",
                           remedy="cowshed storage check --deep") from None  # fmt: skip
        finally:
            self.cancel()

    def cancel(self) -> None:
        """Give up a session that is open; a registry that cannot do that forgets it in its own time."""
        if not self._location:
            return
        location, self._location = self._location, ""
        self._place.say(location, method="DELETE")

    # ------------------------------------------------------------ a session

    def _begin_url(self, query: str = "") -> str:
        url = self._place.url("blobs", "uploads/")
        return f"{url}{'&' if '?' in url else '?'}{query}" if query else url

    def _begin(self) -> None:
        algorithm = self._blob.digest.partition(":")[0]
        query = "" if algorithm == "sha256" else f"digest-algorithm={algorithm}"
        answer = self._place.ask(self._begin_url(query), method="POST", fine=(202,), what=self._blob.digest)
        answer.close()
        self._follow(answer)

    def _follow(self, answer: Response) -> None:
        """Take from an answer where the session goes on."""
        location = answer.headers.get("Location", "")
        if not location and not self._location:
            raise RegistryError(f"{self._place.endpoint.host} begins an upload and does not say where")
        if location:
            base = self._location or self._begin_url()
            self._location = joined(base, location)
            if not self._location:
                raise RegistryError(f"{self._place.endpoint.host} continues an upload at {printable(location)[:100]!r}")
        least = answer.headers.get("OCI-Chunk-Min-Length") or ""
        if least.isascii() and least.isdigit() and len(least) < 12:
            self._least = int(least)

    def _finish(self) -> bool:
        """Send all and close the session. False if the registry has forgotten it."""
        at, whole = 0, self._blob.size <= self._whole
        while True:
            try:
                if whole:
                    self._close(Body(self._blob.size - at, self._pieces(at), **self._file(at)))
                    return True
                if at < self._blob.size:
                    at = self._patch(at)
                    self._failures = 0
                    continue
                self._close(None)
                return True
            except Missing:
                return False
            except Broken as error:
                self._failed(error)
                self._piece = min(self._piece, _AFTER_BREAK)
            except Refused as error:
                if error.answered == 413 and max(self._least, _SMALLEST) < self._piece:
                    self._piece = min(self._piece, self._blob.size) // 4  # more than a proxy lets through
                elif error.answered in _PASSING:
                    self._failed(error)
                else:
                    raise
            there = self._there()
            if there is None:
                return False
            if there > self._blob.size:
                raise self._broke(f"the registry has {there} bytes of it, which is too much")
            if there > at:
                self._failures = 1
            at, whole = there, False

    def _failed(self, error: Exception) -> None:
        self._failures += 1
        if self._place.aborted:
            raise RegistryError(f"the upload of {self._blob.digest[:19]} was cancelled") from None
        if self._failures >= TRIES:
            raise self._broke(str(error)) from None
        time.sleep(min(self._pause * 2 ** (self._failures - 1), LONGEST_WAIT))

    def _broke(self, why: str) -> RegistryError:
        return RegistryError(
            f"the upload of {self._blob.digest[:19]} to {self._place.endpoint.host} broke: {why}", remedy="push again"
        )

    def _close(self, body: Body | None) -> None:
        """The closing PUT, with what is left of the blob if it is to go in one."""
        separator = "&" if "?" in self._location else "?"
        url = f"{self._location}{separator}{urllib.parse.urlencode({'digest': self._blob.digest}, safe=':')}"
        answer = self._ask("PUT", url, body, {}, (201, 202, 204))
        said = answer.headers.get("Docker-Content-Digest")
        if said and said != self._blob.digest:
            raise Tampered(f"{self._place.endpoint.host} calls blob {self._blob.digest[:19]} {said[:100]!r}")
        self._location = ""

    def _patch(self, at: int) -> int:
        """Send one piece; how much the registry has then."""
        size = min(max(self._piece, self._least, _SMALLEST), self._blob.size - at)
        if self._blob.size - at - size < self._least:
            size = self._blob.size - at  # the last one may be of any size, but not the one before it
        body = Body(size, self._pieces(at), **self._file(at))
        answer = self._ask("PATCH", self._location, body, {"Content-Range": f"{at}-{at + size - 1}"}, (202, 201, 204))
        self._follow(answer)
        there = _received(answer)
        return at + size if there is None else there

    def _there(self) -> int | None:
        """How much the registry has, None if it has lost the session."""
        try:
            answer = self._ask("GET", self._location, None, {}, (204, 200, 202), once=False)
        except (Missing, Refused):
            return None
        self._follow(answer)
        return _received(answer) or 0

    def _ask(
        self, method: str, url: str, body: Body | None, headers: dict[str, str], fine: tuple[int, ...],
        *, once: bool = True,
    ) -> Response:  # fmt: skip
        answer = self._place.ask(
            url, {**_OCTETS, **headers} if body is not None else headers, method=method, body=body, fine=fine,
            what=self._blob.digest, once=once,
        )  # fmt: skip
        answer.close()
        return answer

    # ------------------------------------------------------------ bytes

    def _pieces(self, at: int) -> Callable[[], Iterable[bytes]]:
        source = self._source
        if isinstance(source, str):
            return lambda: ()  # it is sent from its file
        return lambda: source(at)

    def _file(self, at: int) -> dict[str, Any]:
        file = {"path": self._source, "offset": at} if isinstance(self._source, str) else {}
        return {**file, "told": lambda sent: self._told(at + sent)}


def _received(answer: Response) -> int | None:
    """The number of bytes that a session has, None if the answer does not say it. `Range: 0-N` is N + 1 bytes, and
    `0-0` may mean none or one; it is taken for none, as one byte is sent again in no time."""
    first, _, last = answer.headers.get("Range", "").removeprefix("bytes=").partition("-")
    if first != "0" or not (last.isascii() and last.isdigit()) or len(last) > 18:
        return None
    return int(last) + 1 if int(last) else 0
