"""HTTP to one registry and wherever it sends us: connections kept open, proxies, redirects, bounded reads.

Redirects are followed here and not by a library, so that it is certain that credentials stay with the host that they
are for, and that no answer from outside makes us ask this machine or its link-local neighbours (cloud metadata): the
address is checked on the connected socket, before a byte is sent, so that no name can resolve around it.
"""

from __future__ import annotations

import http.client
import os
import select
import socket
import threading
import time
import urllib.parse

from cowshed import log
from cowshed.errors import RegistryError
from cowshed.registry.proxies import proxy_for

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping
    from ssl import SSLContext

    from cowshed.registry.endpoints import Trust
    from cowshed.registry.proxies import Proxy

CHUNK = 1 << 18
TIMEOUT = 60.0  # seconds without a byte
_SLOWEST = 64 << 10  # bytes that must come in each TIMEOUT: who drips does not hold us for ever
_REDIRECTS = 8
_REDIRECTED = (301, 302, 303, 307, 308)
_DRAIN = 64 << 10
_TEXT = 300  # characters of a server's words that are told
_SENDFILE = 4 << 20  # bytes between two signs of progress
_SAFE = "/%:@!$&'()*+,;=~-._"

Origin = tuple[str, str, int]


class Broken(Exception):
    """The connection did not last; another try may go better."""


class Body:
    """What a request sends: `size` bytes from `pieces()`, which may be called again for another try; or
    from the file `path` at `offset`, which over plain HTTP does not pass through this process."""

    def __init__(
        self, size: int, pieces: Callable[[], Iterable[bytes]], *, path: str = "", offset: int = 0,
        told: Callable[[int], None] = lambda sent: None,
    ) -> None:  # fmt: skip
        """told: called with the number of bytes that have been handed to the kernel."""
        self.size, self._pieces, self._path, self._offset, self._told = size, pieces, path, offset, told

    @classmethod
    def of(cls, data: bytes) -> Body:
        return cls(len(data), lambda: (data,))

    def send(self, connection: http.client.HTTPConnection) -> None:
        """OSError if the other side does not take it; Shrunk if there are fewer bytes than `size`."""
        sent = 0
        if self._path:
            with open(self._path, "rb", buffering=0) as file:
                while sent < self.size:
                    count = connection.sock.sendfile(file, self._offset + sent, min(_SENDFILE, self.size - sent))
                    if not count:
                        break
                    sent += count
                    self._told(sent)
        else:
            for piece in self._pieces():
                piece = piece[: self.size - sent]
                connection.sock.sendall(piece)
                sent += len(piece)
                self._told(sent)
                if sent == self.size:
                    break
        if sent != self.size:
            raise Shrunk(f"only {sent} of {self.size} bytes are there to be sent")


class Shrunk(Exception):
    """A source has fewer bytes than it is said to have."""


class Response:
    """An answer whose body has not been read. Close it, or read it to its end; then the connection is used again."""

    def __init__(self, transport: Transport, origin: Origin, connection: http.client.HTTPConnection) -> None:
        self._transport, self._origin, self._connection = transport, origin, connection
        self._answer = connection.getresponse()
        self._over = False
        self.status, self.headers = self._answer.status, self._answer.headers

    def read(self, limit: int) -> bytes:
        """The whole body, cut after limit bytes: one byte more than allowed tells that it is too long. Broken."""
        parts = []
        for piece in self.pieces():
            parts.append(piece[:limit])
            limit -= len(parts[-1])
            if limit <= 0:
                break
        self.close()
        return b"".join(parts)

    def pieces(self) -> Iterator[bytes]:
        """The body as it comes. Broken if the connection ends within or stalls."""
        since, received = time.monotonic(), 0
        try:
            while True:
                piece = self._answer.read1(CHUNK)
                if not piece:
                    break
                yield piece
                received += len(piece)
                now = time.monotonic()
                if now - since > TIMEOUT:
                    if received < _SLOWEST:
                        raise Broken(f"only {received} bytes came in {now - since:.0f} seconds")
                    since, received = now, 0
        except (OSError, http.client.HTTPException) as error:
            self.drop()
            raise Broken(reason(error)) from None
        self.close()

    def close(self) -> None:
        """Done with it; what little is left of the body is read, so that the connection can be kept."""
        if self._over:
            return
        try:
            if not self._answer.isclosed() and self._answer.length is not None and self._answer.length <= _DRAIN:
                self._answer.read()
        except (OSError, http.client.HTTPException):
            self.drop()
            return
        if self._answer.isclosed() and not self._answer.will_close:
            self._over = True
            self._transport._keep(self._origin, self._connection)
        else:
            self.drop()

    def drop(self) -> None:
        """Done with it and with its connection."""
        if self._over:
            return
        self._over = True
        self._answer.close()
        self._transport._end(self._connection)


class Transport:
    """The connections of one client; safe for several threads."""

    def __init__(self, what: str, *, trust: Trust | None = None, timeout: float = TIMEOUT) -> None:
        """what: HOST[:PORT] of the other side, by which errors name it; only it is shown a client certificate. timeout:
        seconds without a byte."""
        self._what, self._trust, self._timeout = what, trust, timeout
        self._idle: dict[Origin, list[http.client.HTTPConnection]] = {}
        self._busy: set[http.client.HTTPConnection] = set()
        self._guard = threading.Lock()
        self._contexts: dict[tuple[bool, bool], SSLContext] = {}  # by: for whom we were made, to be verified
        self._local: set[str] = set()  # hosts named by the user that turned out to be this machine
        self._aborted = False

    def request(
        self,
        url: str,
        headers: Mapping[str, str],
        *,
        method: str = "",
        body: bytes | Body | None = None,
        redirects: int = _REDIRECTS,
        trusted: bool = True,
        home: str = "",
    ) -> Response:
        """GET (POST with a body) unless another method is named, following up to `redirects` redirects.

        A redirect keeps method and body (307 and 308; 301, 302 and 303 leave that open, and are an error for what is
        no GET or HEAD: RFC 9110 section 15.4).

        trusted: the user named this host; others must not be on this machine or link-local unless `home`, the host on
        whose word we go there, is on this machine too. Raises RegistryError, Broken (another try may go better).
        """
        sent = {"User-Agent": "cowshed", "Accept-Encoding": "identity", **headers}
        if isinstance(body, bytes):
            body = Body.of(body)
        method = method or ("GET" if body is None else "POST")
        if body is not None or method in ("POST", "PUT", "PATCH"):
            sent["Content-Length"] = str(body.size if body is not None else 0)
        first = self._split(url)
        home = home or first[1]
        for _ in range(redirects + 1):
            where = self._split(url)
            if where != first:
                sent.pop("Authorization", None)
                trusted = False
            answer = self._exchange(method, where, url, sent, body, "" if trusted else home)
            if answer.status not in _REDIRECTED:
                return answer
            if method not in ("GET", "HEAD") and answer.status not in (307, 308):
                answer.close()
                raise RegistryError(f"{self._what} redirects a {method} with status {answer.status}")
            target = answer.headers.get("Location", "")
            answer.close()
            url = joined(url, target)
            if not target or (where[0] == "https" and not url.startswith("https:")):
                raise self._distrust(f"redirects to {target[:100]!r}")
        raise RegistryError(f"{self._what} redirects more than {redirects} times" if redirects
                            else f"{self._what} redirects a request that must not be")  # fmt: skip

    def speaks_tls(self) -> bool:
        """Whether the other side speaks TLS, of a host that may or may not: it is connected to, and the connection is
        kept. RegistryError if it cannot be told."""
        from ssl import SSLError

        where = self._split(f"https://{self._what}")
        try:
            connection = self._connect(where, proxy_for(*where), "")
        except (ConnectionError, TimeoutError, SSLError) as error:
            log.debug(f"{self._what} does not speak TLS: {reason(error)}")
            return False
        except (OSError, http.client.HTTPException) as error:
            raise self._unreachable(error, where) from None
        self._keep(where, connection)
        return True

    def close(self) -> None:
        with self._guard:
            for kept in self._idle.values():
                for connection in kept:
                    connection.close()
            self._idle.clear()

    def abort(self) -> None:
        """End every exchange at once; threads in them get Broken."""
        with self._guard:
            self._aborted = True
            for connection in self._busy:
                if connection.sock is not None:
                    try:
                        connection.sock.shutdown(socket.SHUT_RDWR)
                    except OSError:
                        continue  # it has ended by itself
        self.close()

    # ------------------------------------------------------------ one exchange

    def _split(self, url: str) -> Origin:
        found = origin(url)
        if found is None:
            raise self._distrust(f"names {url[:100]!r}")
        return found

    def _distrust(self, does: str) -> RegistryError:
        return RegistryError(f"{self._what} {does}, which is not to be trusted")

    def _exchange(
        self, method: str, origin: Origin, url: str, headers: dict[str, str], body: Body | None, home: str
    ) -> Response:
        scheme, host, port = origin
        parts = urllib.parse.urlsplit(url)
        target = urllib.parse.quote(parts.path or "/", safe=_SAFE)
        if parts.query:
            target += "?" + urllib.parse.quote(parts.query, safe=_SAFE + "?")
        proxy = proxy_for(scheme, host, port)
        if proxy is not None and scheme == "http":
            target = f"http://{parts.netloc}{target}"
            if proxy.authorization:
                headers = {**headers, "Proxy-Authorization": proxy.authorization}
        while True:
            connection = self._take(origin)
            kept = connection is not None
            try:
                if connection is None:
                    connection = self._connect(origin, proxy, home)
                _send(connection, method, target, headers, body)
                answer = Response(self, origin, connection)
                log.debug(
                    f"{method} {scheme}://{host}:{port}{parts.path} answered {answer.status}"
                )  # its query is a secret
                return answer
            except (OSError, http.client.HTTPException, ValueError) as error:
                if connection is not None:
                    self._end(connection)
                if self._aborted:
                    raise Broken("cancelled") from None
                if kept and body is None and isinstance(error, (ConnectionError, http.client.BadStatusLine)):
                    continue  # the server had closed it meanwhile; of a body it may have taken some
                raise self._unreachable(error, origin) from None
            except BaseException:
                if connection is not None:
                    self._end(connection)
                raise

    def _unreachable(self, error: Exception, origin: Origin) -> Exception:
        if isinstance(error, (ConnectionResetError, BrokenPipeError, TimeoutError, http.client.HTTPException)):
            return Broken(f"{self._what} cannot be reached: {reason(error)}")
        remedy = "check the name and the network"
        text = reason(error)
        if "CERTIFICATE_VERIFY_FAILED" in text:
            remedy = (
                f"if its certificate is your own, put its authority into /etc/containers/certs.d/{self._what}/ca.crt, "
                "or name its directory by --cert-dir"
            )
        elif "WRONG_VERSION_NUMBER" in text or "HTTP_REQUEST" in text:
            remedy = "if it speaks plain HTTP, set `insecure = true` in the registry's settings, or --tls-verify=false"
        return RegistryError(f"{self._what} cannot be reached at {origin[1]}:{origin[2]}: {text}", remedy=remedy)

    def _connect(self, origin: Origin, proxy: Proxy | None, home: str) -> http.client.HTTPConnection:
        scheme, host, port = origin
        if proxy is None:
            connection = http.client.HTTPConnection(host, port, timeout=self._timeout)
        else:
            connection = http.client.HTTPConnection(proxy.host, proxy.port, timeout=self._timeout)
            if scheme == "https":
                via = {"Proxy-Authorization": proxy.authorization} if proxy.authorization else {}
                connection.set_tunnel(host, port, via)
        self._own(connection)
        try:
            self._check_host(host, home)
            connection.connect()
            if proxy is None:
                self._check_address(connection.sock.getpeername()[0], host, home)
            if scheme == "https":
                connection.sock = self._tls(host, port).wrap_socket(connection.sock, server_hostname=host)
        except BaseException:
            self._end(connection)
            raise
        return connection

    def _tls(self, host: str, port: int) -> SSLContext:
        mine = origin(f"https://{self._what}")
        own = mine == ("https", host, port)
        verify = self._trust is None or self._trust.verify or mine is None or mine[1] != host
        with self._guard:
            if (own, verify) not in self._contexts:
                from cowshed.registry import certificates

                self._contexts[own, verify] = certificates.context(self._what, self._trust, own=own, verify=verify)
            return self._contexts[own, verify]

    # ------------------------------------------------------------ where we may go

    def _check_host(self, host: str, home: str) -> None:
        """An address written as such is checked before anything is sent anywhere, also for proxies."""
        if home and _inside(host):
            self._check_address(host, host, home)

    def _check_address(self, address: str, host: str, home: str) -> None:
        inside = _inside(address)
        if not home:
            if inside:
                self._local.add(host)
        elif inside and home not in self._local:
            raise self._distrust(f"sends us to {host} ({address}), an address of this machine or its link")

    # ------------------------------------------------------------ the pool

    def _take(self, origin: Origin) -> http.client.HTTPConnection | None:
        with self._guard:
            kept = self._idle.get(origin)
            if not kept or self._aborted:
                return None
            connection = kept.pop()
            self._busy.add(connection)
            return connection

    def _own(self, connection: http.client.HTTPConnection) -> None:
        with self._guard:
            if self._aborted:
                raise Broken("cancelled")
            self._busy.add(connection)

    def _keep(self, origin: Origin, connection: http.client.HTTPConnection) -> None:
        with self._guard:
            self._busy.discard(connection)
            if not self._aborted:
                self._idle.setdefault(origin, []).append(connection)
                return
        connection.close()

    def _end(self, connection: http.client.HTTPConnection) -> None:
        with self._guard:
            self._busy.discard(connection)
        connection.close()


def origin(url: str) -> Origin | None:
    """(scheme, host, port) of an address; None for one that nobody should go to: another scheme, with a password."""
    try:
        parts = urllib.parse.urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError:
        return None
    if parts.scheme not in ("http", "https") or not host or parts.username or parts.password:
        return None
    return parts.scheme, host.lower(), port or (443 if parts.scheme == "https" else 80)


def joined(base: str, target: str) -> str:
    """Where a reference leads from an address (RFC 3986 section 5); "" if it is none."""
    try:
        return urllib.parse.urljoin(base, target)
    except ValueError:
        return ""


def _send(
    connection: http.client.HTTPConnection, method: str, target: str, headers: Mapping[str, str], body: Body | None
) -> None:
    """Send a request. A server that answers before it has read all, and closes, is listened to all the same."""
    connection.putrequest(method, target, skip_accept_encoding=True)
    for name, value in headers.items():
        connection.putheader(name, value)
    connection.endheaders()
    if body is None:
        return
    try:
        body.send(connection)
    except (BrokenPipeError, ConnectionResetError):
        if not select.select([connection.sock], [], [], 0)[0]:
            raise


def _inside(address: str) -> bool:
    """Whether an address is of this machine or its link. False for what is a name."""
    import ipaddress

    try:
        ip = ipaddress.ip_address(address)
    except ValueError:
        return address == "localhost" or address.endswith(".localhost")
    mapped = getattr(ip, "ipv4_mapped", None)
    ip = mapped or ip
    return ip.is_loopback or ip.is_link_local or ip.is_unspecified or ip.is_multicast


def reason(error: BaseException) -> str:
    """An error of the network in words."""
    if isinstance(error, TimeoutError):
        return "no answer in time"
    if isinstance(error, http.client.IncompleteRead):
        return "the answer is cut short"
    if isinstance(error, OSError) and error.errno and not str(error.strerror or "").startswith("["):
        return error.strerror or os.strerror(error.errno)
    return printable(str(error)) or type(error).__name__


def printable(text: str) -> str:
    """What a server says: short, in one line, and nothing that steers a terminal."""
    return "".join(c if c.isprintable() else " " for c in text)[:_TEXT].strip()
