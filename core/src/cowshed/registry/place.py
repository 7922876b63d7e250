"""One place that serves a repository: requests that are authorized and, where that may help, repeated."""

from __future__ import annotations

import http.client
import json
import threading
import time
from email.utils import parsedate_to_datetime

from cowshed import log
from cowshed.errors import AuthError, NotFound, RegistryError
from cowshed.registry.authorization import Authorizer
from cowshed.registry.endpoints import EITHER
from cowshed.registry.transport import Broken, Transport, origin, printable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from http.client import HTTPMessage

    from cowshed.registry.endpoints import Endpoint
    from cowshed.registry.transport import Body, Response

_ERROR_LIMIT = 1 << 20
_REFUSED_UNREAD = (429,)
_TRANSIENT = (429, 500, 502, 503, 504)
TRIES = 4  # of a request that meets a transient error, and of a transfer that breaks without getting on
LONGEST_WAIT = 30.0
_REMEDIES = {
    405: "its operator has not allowed that", 413: "its operator, or a proxy before it, limits the size",
    429: "try again later, or log in if that raises its limit", 500: "try again later", 502: "try again later",
    503: "try again later", 504: "try again later", 507: "its disk is full",
}  # fmt: skip
_FAREWELL = 10.0  # seconds
_PATIENCE = 300.0  # seconds that a registry which limits its rate may make us wait


class Missing(RegistryError, NotFound):
    """The registry has no such image or blob."""

    code = "not-found"


class Refused(RegistryError):
    """The registry answers with a status that nobody wants: `answered` (`status` is the command's)."""

    def __init__(self, answered: int, text: str, *, remedy: str = "") -> None:
        super().__init__(text, remedy=remedy)
        self.answered = answered


class Place:
    """An endpoint, its connections, and what lets us in. Safe for several threads."""

    def __init__(self, endpoint: Endpoint, repository: str, *, actions: str = "pull", pause: float = 0.5) -> None:
        """actions: see Authorizer. pause: seconds before the first repetition of what failed; it doubles."""
        self._endpoint, self.repository, self._pause = endpoint, repository, pause
        self.transport = Transport(endpoint.host, trust=endpoint.trust)
        self.authorizer = Authorizer(endpoint, repository, self.transport, actions)
        self.dead = self.aborted = False
        self._trying = threading.Lock()

    @property
    def endpoint(self) -> Endpoint:
        """Where it is; of one that may speak TLS or not, found out by trying when it is first needed. RegistryError."""
        with self._trying:
            if self._endpoint.scheme == EITHER:
                scheme = "https" if self.transport.speaks_tls() else "http"
                self._endpoint = self._endpoint.with_scheme(scheme)
            return self._endpoint

    def url(self, kind: str, name: str) -> str:
        """Of something in the repository: kind is `manifests`, `blobs`, …"""
        return self.endpoint.url + self.endpoint.path(self.repository, kind, name)

    def abort(self) -> None:
        """End all exchanges at once, from any thread."""
        self.aborted = True
        self.transport.abort()

    def ask(
        self,
        url: str,
        headers: Mapping[str, str] | None = None,
        *,
        method: str = "GET",
        body: Body | None = None,
        fine: Sequence[int] = (200,),
        what: str,
        once: bool = False,
    ) -> Response:
        """The answer to a request, its status one of `fine`; for other statuses an error that names `what`.

        Repeats after transient errors, and waits as long as Retry-After says; `once`: only what has certainly not been
        done; a broken connection is Broken then. Raises Missing (404), AuthError, Broken (416), RegistryError.
        """
        failures, refusals, waited = 0, 0, 0.0
        while True:
            sent = self._authorized(url, headers or {})
            used = sent.get("Authorization", "")
            wait: float | None = None
            try:
                answer = self._request(self.transport, url, sent, method, body)
            except Broken as error:
                failures += 1
                if once:
                    raise
                if failures >= TRIES or self.aborted:
                    raise RegistryError(str(error), remedy="try again later") from None
            else:
                warnings(answer.headers.get_all("Warning") or (), self.endpoint.host)
                if answer.status in fine:
                    return answer
                said = _said(answer)
                if answer.status == 416 and "Range" in sent:
                    raise Broken("the registry cannot send a part of it")
                if answer.status == 401 and refusals < 2 and self._own(url):
                    refusals += 1
                    self.authorizer.renew(answer.headers.get_all("WWW-Authenticate") or [], used)
                    continue
                failures += 1
                if answer.status not in (_REFUSED_UNREAD if once else _TRANSIENT) or failures >= TRIES:
                    raise refusal(answer.status, said, f"{self.endpoint.host}/{self.repository}".rstrip("/"), what)
                wait = seconds(answer.headers.get("Retry-After"))
                if wait is not None and waited + wait > _PATIENCE:
                    raise RegistryError(
                        f"{self.endpoint.host} asks to wait for {wait:.0f} seconds: {words(said, answer.status)}",
                        remedy="try again later, or log in if that raises its limit",
                    )
            pause = wait if wait is not None else min(self._pause * 2 ** (failures - 1), LONGEST_WAIT)
            waited += pause
            if pause >= 5:
                log.warn(f"{self.endpoint.host}: waiting {pause:.0f} seconds, as it asks for")
            self._sleep(pause)

    def document(
        self, url: str, headers: Mapping[str, str] | None = None, *, limit: int, what: str
    ) -> tuple[bytes, HTTPMessage]:
        """(the whole body, the headers) of an answer, asked for again if it breaks off. Raises as `ask` does, and
        RegistryError for more bytes than limit."""
        failures = 0
        while True:
            answer = self.ask(url, headers, what=what)
            try:
                data = answer.read(limit + 1)
                length = answer.headers.get("Content-Length", "")
                if len(data) <= limit and length.isdecimal() and int(length) > len(data):
                    raise Broken(f"{self.endpoint.host} sends {len(data)} of {length[:20]} bytes")
            except Broken as error:
                failures += 1
                if failures >= TRIES or self.aborted:
                    raise RegistryError(str(error), remedy="try again later") from None
                self._sleep(min(self._pause * 2 ** (failures - 1), LONGEST_WAIT))
                continue
            if len(data) > limit:
                raise RegistryError(f"{self.endpoint.host} sends more than {limit} bytes for {what[:80]}")
            return data, answer.headers

    def say(self, url: str, *, method: str) -> None:
        """Send a request whose answer does not matter, also when the work is aborted; not for long."""
        transport = Transport(self.endpoint.host, trust=self.endpoint.trust, timeout=_FAREWELL)
        try:
            self._request(transport, url, self._authorized(url, {}), method, None).drop()
        except (RegistryError, Broken) as error:
            log.debug(f"{method} at {self.endpoint.host}: {error}")
        finally:
            transport.close()

    def _authorized(self, url: str, headers: Mapping[str, str]) -> dict[str, str]:
        """With what lets us in, if the url is of the registry itself and not of one that it has named."""
        used = self.authorizer.header()
        return {**headers, "Authorization": used} if used and self._own(url) else dict(headers)

    def _own(self, url: str) -> bool:
        return origin(url) == origin(self.endpoint.url)

    def _request(
        self, transport: Transport, url: str, headers: dict[str, str], method: str, body: Body | None
    ) -> Response:
        if self.endpoint.scheme == "https" and not url.startswith("https:"):
            raise RegistryError(f"{self.endpoint.host} names {url[:100]!r}, which is not to be trusted")
        return transport.request(
            url, headers, method=method, body=body, trusted=self._own(url), home=self.endpoint.name
        )

    def _sleep(self, seconds: float) -> None:
        """Wait, but no longer than until the work is aborted."""
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0 and not self.aborted:
            time.sleep(min(left, 0.2))


def _said(answer: Response) -> bytes:
    """What the body of an error says, as far as it came."""
    try:
        return answer.read(_ERROR_LIMIT)
    except Broken:
        return b""


_told: set[str] = set()
_telling = threading.Lock()


def warnings(headers: Sequence[str], host: str, tell: Callable[[str], None] = log.warn) -> None:
    """Tell what a registry warns of (distribution-spec, Warnings: `299 - "text"`), each once per process."""
    for header in headers:
        code, _, rest = header.partition(" ")
        agent, _, text = rest.partition(" ")
        text = text.strip()
        if code != "299" or agent != "-" or len(text) < 2 or text[0] != '"' or text[-1] != '"':
            continue
        text = printable(text[1:-1].replace('\\"', '"').replace("\\\\", "\\"))
        with _telling:
            if (key := f"{host} {text}") in _told or len(_told) > 100:
                continue
            _told.add(key)
        tell(f"{host} says: {text}")


def seconds(text: str | None) -> float | None:
    """Retry-After in seconds (RFC 9110 section 10.2.3: a number, or a date), None for none or nonsense."""
    if not text:
        return None
    if text.isascii() and text.isdigit() and len(text) < 10:
        return float(text)
    try:
        return max(0.0, parsedate_to_datetime(text).timestamp() - time.time())
    except (ValueError, TypeError, IndexError, OverflowError):
        return None


def words(said: bytes, status: int) -> str:
    """What the body of an error says (distribution-spec, Error Codes), else what its status means."""
    try:
        errors = json.loads(said)["errors"]
        return printable("; ".join(str(e.get("message") or e.get("code")) for e in errors))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return http.client.responses.get(status, f"status {status}")


def refusal(status: int, said: bytes, where: str, wanted: str) -> RegistryError:
    """The error for an answer that is not what was hoped for."""
    what = _called(where, wanted)
    text = words(said, status)
    if status in (401, 403):
        return AuthError(f"the registry does not let us have {what}: {text}", remedy="check the name, or log in")
    if status == 404:
        return Missing(f"{what} is not in the registry: {text}", remedy="check name and tag")
    return Refused(
        status, f"the registry answers {what} with status {status}: {text}", remedy=_REMEDIES.get(status, "")
    )


def _called(where: str, wanted: str) -> str:
    """What was asked for, as errors name it."""
    if not wanted or "/" not in where or " " in wanted:
        return f"{wanted[:80]} of {where}" if wanted else where
    return f"{where}{'@' if ':' in wanted else ':'}{wanted[:80]}"
