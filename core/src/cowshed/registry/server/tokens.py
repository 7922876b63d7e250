"""Bearer tokens: JSON web tokens (RFC 7519) with the claims of Docker's token specification, verified without asking
anybody. Those of this registry are signed with a secret (HS256), those of another token server with its RSA key
(RS256).

The algorithm is that of the key and not what a token says (RFC 8725, 3.1).
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import os
import time
import urllib.parse

from cowshed.errors import ConfigError
from cowshed.registry.server import names
from cowshed.registry.server.refusals import Refusal

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_LIFETIME = 300  # seconds of a token
_LEEWAY = 30  # that clocks may differ
_LONGEST = 64 << 10
_SHA256 = bytes.fromhex("3031300d060960864801650304020105000420")  # DigestInfo before the hash: RFC 8017, 9.2
_RSA = bytes.fromhex("06092a864886f70d010101")  # the object identifier rsaEncryption
_ACTIONS = ("pull", "push", "delete", "*")


class Tokens:
    """Issues and verifies. realm: where clients get tokens, "" for this registry's own /token."""

    def __init__(
        self, key: Secret | PublicKey, *, service: str, realm: str = "", issuer: str = "", tls: bool = False
    ) -> None:
        self._key, self._service, self._realm, self._issuer = key, service, realm, issuer
        self._scheme = "https" if tls else "http"

    def challenge(self, host: str, name: str, right: str) -> str:
        """The value of WWW-Authenticate."""
        plain = all(c.isalnum() or c in ".:-[]_" for c in host)
        realm = self._realm or f"{self._scheme}://{host if plain else 'localhost'}/token"
        said = f'Bearer realm="{realm}",service="{self._service}"'
        if right == "catalog":
            said += ',scope="registry:catalog:*"'
        elif name:
            said += f',scope="repository:{name}:{"pull,push" if right == "push" else right}"'
        return said

    def issue(self, user: str, scopes: list[str], *, everything: bool) -> dict[str, object]:
        """The answer of a token server. everything: whether he may write as well."""
        if not isinstance(self._key, Secret):
            raise Refusal("NAME_UNKNOWN", "tokens of this registry come from another server")
        access = []
        for scope in scopes[:100]:
            kind, _, rest = scope.partition(":")
            name, _, said = rest.rpartition(":")
            wanted = [one for one in said.split(",") if one in _ACTIONS and (everything or one == "pull")]
            if kind == "registry" and name == "catalog" and everything:
                access.append({"type": kind, "name": name, "actions": ["*"]})
            elif kind == "repository" and wanted:
                access.append({"type": kind, "name": names.check_name(name), "actions": wanted})
        now = int(time.time())
        claims = {
            "iss": self._issuer, "sub": user, "aud": self._service, "iat": now, "nbf": now, "exp": now + _LIFETIME,
            "jti": os.urandom(8).hex(), "access": access,
        }  # fmt: skip
        text = f"{_encode({'typ': 'JWT', 'alg': self._key.algorithm})}.{_encode(claims)}"
        token = f"{text}.{_base64(self._key.sign(text.encode()))}"
        stamp = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(now))
        return {"token": token, "access_token": token, "expires_in": _LIFETIME, "issued_at": stamp}

    def verify(self, text: str) -> dict[str, Any] | None:
        """The claims of a token that is genuine, for this service, and valid now; None of any other."""
        if len(text) > _LONGEST:
            return None
        signed, _, signature = text.rpartition(".")
        head, _, body = signed.partition(".")
        try:
            header, claims = json.loads(_decode(head)), json.loads(_decode(body))
            said = _decode(signature)
        except (ValueError, RecursionError):
            return None
        if not isinstance(header, dict) or not isinstance(claims, dict) or header.get("alg") != self._key.algorithm:
            return None
        if not self._key.verify(signed.encode(), said):
            return None
        now = time.time()
        until, since = claims.get("exp"), claims.get("nbf", 0)
        if not isinstance(until, (int, float)) or not isinstance(since, (int, float)):
            return None
        if not since - _LEEWAY <= now < until + _LEEWAY:
            return None
        audience = claims.get("aud")
        if self._service not in (audience if isinstance(audience, list) else [audience]):
            return None
        if self._issuer and claims.get("iss") != self._issuer:
            return None
        return claims


class Secret:
    """A key that signs and verifies (HS256)."""

    algorithm = "HS256"

    def __init__(self, key: bytes) -> None:
        self._key = key

    def sign(self, data: bytes) -> bytes:
        return hmac.digest(self._key, data, "sha256")

    def verify(self, data: bytes, signature: bytes) -> bool:
        return hmac.compare_digest(self.sign(data), signature)


class PublicKey:
    """The RSA key of a token server (RS256: RFC 8017, 8.2.2). Verifying needs no secret, and so no care for time."""

    algorithm = "RS256"

    def __init__(self, modulus: int, exponent: int) -> None:
        self._modulus, self._exponent = modulus, exponent
        self._size = (modulus.bit_length() + 7) // 8

    def verify(self, data: bytes, signature: bytes) -> bool:
        value = int.from_bytes(signature, "big")
        if len(signature) != self._size or value >= self._modulus:
            return False
        found = pow(value, self._exponent, self._modulus).to_bytes(self._size, "big")
        rest = _SHA256 + hashlib.sha256(data).digest()
        return hmac.compare_digest(found, b"\0\1" + b"\xff" * (self._size - 3 - len(rest)) + b"\0" + rest)


def key_of(path: str) -> Secret | PublicKey:
    """The key in a file: PEM of a public RSA key or of a certificate, or a secret of at least 32 bytes. ConfigError."""
    try:
        with open(path, "rb") as file:
            data = file.read(1 << 20)
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}") from None
    if b"-----BEGIN " in data:
        first, _, rest = data.partition(b"-----BEGIN ")[2].partition(b"-----")
        if first not in (b"PUBLIC KEY", b"CERTIFICATE"):
            raise ConfigError(f"{path} has no public key", remedy="write it with openssl rsa -pubout")
        try:
            return _public(base64.b64decode(rest.partition(b"-----")[0]))
        except (ValueError, IndexError):
            raise ConfigError(f"{path} has no RSA key of at least 2048 bits") from None
    secret = data.strip()
    if len(secret) < 32:
        raise ConfigError(f"{path} has {len(secret)} bytes: a secret has at least 32", remedy="openssl rand -hex 32")
    return Secret(secret)


def own_key(path: str) -> Secret:
    """The registry's own secret; made when there is none. OSError."""
    from cowshed_linux import files

    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except FileNotFoundError:
        files.write_atomically(path, os.urandom(32).hex().encode() + b"\n")
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    with open(fd, "rb") as file:
        return Secret(file.read().strip())


def grants(claims: dict[str, Any], name: str, right: str) -> bool:
    """Whether a verified token allows this."""
    if not right:
        return True
    access = claims.get("access")
    for one in access if isinstance(access, list) else []:
        if not isinstance(one, dict) or not isinstance(one.get("actions"), list):
            continue
        if right == "catalog":
            if one.get("type") == "registry" and one.get("name") == "catalog" and "*" in one["actions"]:
                return True
        elif one.get("type") == "repository" and one.get("name") == name and {right, "*"} & _words(one["actions"]):
            return True
    return False


def form(data: bytes) -> dict[str, str]:
    """The fields of application/x-www-form-urlencoded. Refusal."""
    try:
        return dict(urllib.parse.parse_qsl(data.decode("ascii"), max_num_fields=50))
    except ValueError:
        raise Refusal("UNSUPPORTED", "the form is malformed", status=400) from None


def _public(der: bytes) -> PublicKey:
    """The RSA key in a SubjectPublicKeyInfo or a certificate: behind its object identifier (RFC 8017, A.1)."""
    at = der.index(_RSA) + len(_RSA)
    if der[at : at + 2] == b"\x05\x00":
        at += 2
    start, end = _inside(der, at, 0x03)
    start, _ = _inside(der[:end], start + 1, 0x30)
    first, second = _inside(der[:end], start, 0x02)
    modulus = int.from_bytes(der[first:second], "big")
    first, last = _inside(der[:end], second, 0x02)
    exponent = int.from_bytes(der[first:last], "big")
    if modulus.bit_length() < 2048 or exponent < 3 or last > end:
        raise ValueError
    return PublicKey(modulus, exponent)


def _inside(der: bytes, at: int, tag: int) -> tuple[int, int]:
    """(begin, end) of what an element of DER holds. ValueError, IndexError."""
    if der[at] != tag:
        raise ValueError
    length, at = der[at + 1], at + 2
    if length & 0x80:
        count = length & 0x7F
        length, at = int.from_bytes(der[at : at + count], "big"), at + count
    if at + length > len(der):
        raise ValueError
    return at, at + length


def _words(values: list[Any]) -> set[str]:
    return {one for one in values if isinstance(one, str)}


def _encode(value: dict[str, Any]) -> str:
    return _base64(json.dumps(value, separators=(",", ":")).encode())


def _base64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode("ascii")


def _decode(text: str) -> bytes:
    return base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
