"""Who may do what: everybody, those of an htpasswd file, or those with a token (`tokens`)."""

from __future__ import annotations

import base64
import hashlib
import os
import threading

from cowshed.errors import ConfigError
from cowshed.registry.server import tokens
from cowshed.registry.server.refusals import Refusal
from cowshed_linux import password

TYPE_CHECKING = False
if TYPE_CHECKING:
    from cowshed.registry.server.message import Request
    from cowshed.registry.server.tokens import Tokens

_REALM = "cowshed registry"
_REMEMBERED = 256  # credentials that were right: bcrypt takes 50 ms
_NOBODY = "$2y$10$......................................................"  # takes as long as one that exists


class Users:
    """An htpasswd file. It is read again when it changes. Safe for several threads."""

    def __init__(self, path: str) -> None:
        """ConfigError if it cannot be read, or has other hashes than of crypt(3)."""
        self._path = path
        self._guard = threading.Lock()
        self._key = os.urandom(32)
        self._state: tuple[int, int] = (0, 0)
        self._hashes: dict[str, str] = {}
        self._right: set[bytes] = set()
        self._load()

    def right(self, user: str, secret: str) -> bool:
        """Whether this is the user's password."""
        with self._guard:
            self._load()
            hashed = self._hashes.get(user, "")
            seen = hashlib.blake2b(f"{user}\0{hashed}\0{secret}".encode(), key=self._key).digest()
            if seen in self._right:
                return True
        if not password.matches(secret, hashed or _NOBODY) or not hashed:
            return False
        with self._guard:
            if len(self._right) >= _REMEMBERED:
                self._right.clear()
            self._right.add(seen)
        return True

    def _load(self) -> None:
        try:
            status = os.stat(self._path)
            state = (status.st_mtime_ns, status.st_ino)
            if state == self._state:
                return
            with open(self._path, encoding="utf-8") as file:
                lines = file.read().splitlines()
        except (OSError, UnicodeDecodeError) as error:
            if self._state != (0, 0):
                return  # between two versions of the file, the old one counts
            why = error.strerror if isinstance(error, OSError) else "it is no text"
            raise ConfigError(f"{self._path} cannot be read: {why}", remedy="cowshed registry user makes it") from None
        found = {}
        for number, line in enumerate(lines, 1):
            if not line.strip() or line.startswith("#"):
                continue
            user, colon, hashed = line.strip().partition(":")
            if not colon or not user or not hashed.startswith("$") or hashed.startswith("$apr1$"):
                if self._state != (0, 0):
                    continue
                raise ConfigError(
                    f"{self._path}:{number} is not USER:HASH with a hash of bcrypt",
                    remedy="cowshed registry user makes one",
                )
            found[user] = hashed
        self._hashes, self._state = found, state


class Access:
    """What a request may do. anonymous: whether pulling needs no credentials; only with tokens, because clients show
    passwords only where everything needs them. Where there are users, their passwords count beside tokens: curl, and
    whoever else is told to, shows them without being asked."""

    def __init__(self, users: Users | None, issued: Tokens | None, *, anonymous: bool = False) -> None:
        self._users, self._tokens, self._anonymous = users, issued, anonymous
        self._open = users is None and issued is None

    def check(self, request: Request, name: str, right: str) -> None:
        """Refusal unless the request may do this with a repository ("" for none). Fills in request.user."""
        if self._open:
            return
        scheme, _, value = request.headers.get("authorization", "").partition(" ")
        if self._tokens is not None:
            if scheme.lower() == "bearer":
                self._by_token(request, value.strip(), name, right)
                return
            if scheme.lower() == "basic" and (user := self.basic(value)):
                request.user = user
                return
            if self._anonymous and right == "pull":
                return
            raise self._challenge(request, name, right, "")
        if scheme.lower() == "basic":
            request.user = self.basic(value)
            if request.user:
                return
            raise Refusal("UNAUTHORIZED", "user or password is wrong", headers=(self._basic(),))
        raise Refusal("UNAUTHORIZED", "credentials are needed", headers=(self._basic(),))

    def allows(self, request: Request, name: str, right: str) -> bool:
        """The same as an answer, for what a request touches beside its own repository."""
        try:
            self.check(request, name, right)
        except Refusal:
            return False
        return True

    def token(self, request: Request) -> dict[str, object]:
        """A token for who asks, of what he may have of the scopes that he asks for. Refusal."""
        if self._tokens is None or self._users is None:
            raise Refusal("NAME_UNKNOWN", "there is nothing at this path")
        scheme, _, value = request.headers.get("authorization", "").partition(" ")
        user = ""
        if request.method == "POST":
            form = tokens.form(request.body.read(64 << 10))
            scopes = form.get("scope", "").split(" ")
            if form.get("grant_type") != "password" or not self._users.right(
                form.get("username", ""), form.get("password", "")
            ):
                raise Refusal("UNAUTHORIZED", "user or password is wrong", headers=(self._basic(),))
            user = form["username"]
        else:
            scopes = [one for said in request.all("scope") for one in said.split(" ")]
            if scheme.lower() == "basic":
                user = self.basic(value)
            if not user and (scheme or not self._anonymous):
                raise Refusal("UNAUTHORIZED", "user or password is wrong", headers=(self._basic(),))
        request.user = user
        return self._tokens.issue(user, scopes, everything=bool(user))

    def basic(self, value: str) -> str:
        """The user whose credentials these are, "" if they are wrong."""
        if self._users is None:
            return ""
        try:
            user, colon, secret = base64.b64decode(value.strip(), validate=True).decode().partition(":")
        except ValueError:
            return ""
        return user if colon and self._users.right(user, secret) else ""

    def _by_token(self, request: Request, text: str, name: str, right: str) -> None:
        assert self._tokens is not None
        claims = self._tokens.verify(text)
        if claims is None:
            raise self._challenge(request, name, right, "invalid_token")
        subject = claims.get("sub")
        request.user = subject if isinstance(subject, str) else ""
        if not tokens.grants(claims, name, right):
            raise self._challenge(request, name, right, "insufficient_scope")

    def _challenge(self, request: Request, name: str, right: str, error: str) -> Refusal:
        assert self._tokens is not None
        said = self._tokens.challenge(request.headers.get("host", ""), name, right)
        if error:
            said += f',error="{error}"'
        return Refusal("UNAUTHORIZED", "a token is needed", headers=(("WWW-Authenticate", said),))

    @staticmethod
    def _basic() -> tuple[str, str]:
        return "WWW-Authenticate", f'Basic realm="{_REALM}", charset="UTF-8"'
