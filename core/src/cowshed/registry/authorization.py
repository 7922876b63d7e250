"""Getting let in: anonymous, basic and bearer authentication (distribution-spec; Docker's token and OAuth2 endpoints).

Credentials go to the registry they are filed under, and to a token server only if it plainly belongs to that registry
(CVE-2020-15157, CVE-2024-3727, CVE-2026-48978: a registry's word alone decided who got them).
"""

from __future__ import annotations

import base64
import json
import threading
import time
import urllib.parse

from cowshed.errors import AuthError
from cowshed.registry import credentials
from cowshed.registry.challenge import challenges
from cowshed.registry.endpoints import is_loopback
from cowshed.registry.transport import Broken

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

    from cowshed.registry.credentials import Credentials
    from cowshed.registry.endpoints import Endpoint
    from cowshed.registry.transport import Transport

_TOKEN_LIMIT = 1 << 20
_TRIES = 3  # of a connection that breaks
_LIFETIME, _MARGIN = 60, 10  # seconds; the default is the token specification's
_COMMON = frozenset(("co", "com", "org", "net", "ac", "gov", "edu", "or", "ne", "go"))


# What is asked for -> how a refusal calls it
_DOING = {"pull": "pull", "pull,push": "push to", "delete,pull": "delete from", "*": "list"}


class Authorizer:
    """What to send as Authorization to one endpoint for work in one repository. Safe for several threads."""

    def __init__(self, endpoint: Endpoint, repository: str, transport: Transport, actions: str = "pull") -> None:
        """actions: of the repository, as the token specification's scopes name them; "*" with the repository "" for
        the catalog, "" for the registry as such."""
        self._endpoint, self._repository, self._transport = endpoint, repository, transport
        self._actions = actions
        own = f"repository:{repository}:{actions}" if repository else f"registry:catalog:{actions}"
        self._scopes = [own] if actions else []
        self._guard = threading.Lock()
        self._header, self._until = "", 0.0
        self._credentials = endpoint.credentials
        self._searched = endpoint.credentials is not None

    def header(self) -> str:
        """The value to send, "" for none (yet)."""
        with self._guard:
            return self._header if not self._until or time.monotonic() < self._until else ""

    def also(self, repository: str) -> None:
        """From now on also pull from another repository: a cross-repository mount needs both."""
        scope = f"repository:{repository}:pull"
        with self._guard:
            if scope not in self._scopes:
                self._scopes.append(scope)
                if self._header.startswith("Bearer "):
                    self._header = ""

    def not_also(self, repository: str) -> None:
        """Ask no more for what was refused."""
        with self._guard:
            self._scopes = [scope for scope in self._scopes if scope != f"repository:{repository}:pull"]

    def renew(self, said: Iterable[str], used: str) -> None:
        """The registry answered 401 with these WWW-Authenticate headers to a request with `used`. AuthError."""
        with self._guard:
            if self._header != used and (not self._until or time.monotonic() < self._until):
                return  # another thread was faster
            found = challenges(said)
            for challenge in found:
                if challenge.scheme == "bearer":
                    self._bearer(challenge.parameters)
                    return
            for challenge in found:
                known = self._known()
                if challenge.scheme == "basic" and known is not None and known.password:
                    value = _basic(known)
                    if value == used:
                        raise self._refused("the user name or password is wrong")
                    self._header, self._until = value, 0.0
                    return
            raise self._refused("it wants a login")

    def _known(self) -> Credentials | None:
        if not self._searched:
            self._credentials = credentials.find(self._endpoint.account, self._repository, self._endpoint.authfile)
            self._searched = True
        return self._credentials

    def _refused(self, why: str) -> AuthError:
        if not self._actions:
            return AuthError(f"{self._endpoint.host} does not let us in: {why}", remedy="check user and password")
        what = f"{_DOING.get(self._actions, self._actions)} {self._repository or 'its repositories'}"
        return AuthError(
            f"{self._endpoint.host} does not let us {what}: {why}",
            remedy=f"cowshed login {self._endpoint.account}",
        )

    # ------------------------------------------------------------ tokens

    def _bearer(self, said: dict[str, str]) -> None:
        realm = said.get("realm", "")
        self._check(realm)
        known = self._known()
        scopes = list(self._scopes)
        if said.get("scope", "").startswith(("repository:", "registry:")):
            scopes = [s for s in said["scope"].split(" ") if s] + [s for s in scopes if self._actions != "pull"]
        scopes = list(dict.fromkeys(scopes))
        fields = [("service", said["service"])] if said.get("service") else []
        if known is not None and not self._belongs(realm):
            raise AuthError(
                f"{self._endpoint.host} wants its credentials sent to {_host(realm)}, not known to belong to it",
                remedy=f'if it does, add it to token_servers of registries."{self._endpoint.account}"',
            )
        if known is not None and known.identity_token:
            fields += [("scope", " ".join(scopes)), ("grant_type", "refresh_token"),
                       ("refresh_token", known.identity_token), ("client_id", "cowshed")]  # fmt: skip
            answer = self._ask(realm, {"Content-Type": "application/x-www-form-urlencoded"},
                               urllib.parse.urlencode(fields).encode())  # fmt: skip
        else:
            headers = {"Authorization": _basic(known)} if known is not None else {}
            fields += [("scope", scope) for scope in scopes]
            separator = "&" if "?" in realm else "?"
            answer = self._ask(f"{realm}{separator}{urllib.parse.urlencode(fields)}", headers, None)
        self._take(answer)

    def _ask(self, url: str, headers: dict[str, str], body: bytes | None) -> tuple[int, bytes]:
        """(status, body) of the token server's answer."""
        home = self._endpoint.name
        for left in reversed(range(_TRIES)):
            try:
                answer = self._transport.request(
                    url, headers, body=body, redirects=0, trusted=_host(url) == home, home=home
                )
                return answer.status, answer.read(_TOKEN_LIMIT + 1)
            except Broken as error:
                if not left:
                    raise AuthError(f"the token server of {self._endpoint.host}: {error}") from None
        raise AssertionError

    def _take(self, answer: tuple[int, bytes]) -> None:
        status, data = answer
        if status in (400, 401, 403):
            what = "the credentials" if self._known() else "without a login"
            raise self._refused(f"its token server refuses {what}")
        if status != 200 or len(data) > _TOKEN_LIMIT:
            raise AuthError(f"the token server of {self._endpoint.host} answers with status {status}",
                            remedy="try again later")  # fmt: skip
        try:
            value = json.loads(data)
            token = value.get("token") or value["access_token"]
            lifetime = value.get("expires_in") or _LIFETIME
            if not isinstance(token, str) or not token.isascii() or not token.isprintable():
                raise ValueError
            seconds = min(max(float(lifetime), _LIFETIME), 86400.0)
        except (ValueError, KeyError, AttributeError, TypeError, RecursionError):
            raise AuthError(f"the token server of {self._endpoint.host} sends no token") from None
        self._header, self._until = f"Bearer {token}", time.monotonic() + seconds - _MARGIN

    def _check(self, realm: str) -> None:
        """Whether a token server may be asked at all; whether it gets credentials is another question."""
        try:
            parts = urllib.parse.urlsplit(realm)
            host = parts.hostname
        except ValueError:
            parts, host = urllib.parse.urlsplit(""), None
        plain_is_fine = self._endpoint.scheme != "https"
        if (
            not host
            or parts.scheme not in ("https", "http")
            or (parts.scheme == "http" and not plain_is_fine)
            or parts.username is not None
        ):
            raise AuthError(f"{self._endpoint.host} names the token server {realm[:100]!r}, which is not to be trusted")

    def _belongs(self, realm: str) -> bool:
        return belongs(_host(realm), self._endpoint.name, self._endpoint.token_servers)


def belongs(server: str, registry: str, listed: Iterable[str] = ()) -> bool:
    """Whether a token server's host plainly belongs to a registry's: the same host, one below it, a neighbour under
    the same domain, both this machine, or one that the user listed. Hosts in lower case without ports."""
    if server == registry or server in {name.lower() for name in listed}:
        return True
    if is_loopback(server) and is_loopback(registry):
        return True
    if _is_address(server) or _is_address(registry):
        return False
    if server.endswith("." + registry):
        return True
    parent = registry.partition(".")[2]
    labels = parent.split(".")
    if len(labels) < 2 or (len(labels) == 2 and labels[0] in _COMMON):
        return False  # the parent is a public suffix, which strangers share
    return server == parent or server.endswith("." + parent)


def _is_address(host: str) -> bool:
    return ":" in host or host.replace(".", "").isdigit()


def _host(url: str) -> str:
    return (urllib.parse.urlsplit(url).hostname or "").lower()


def _basic(known: Credentials) -> str:
    return "Basic " + base64.b64encode(f"{known.user}:{known.password}".encode()).decode()
