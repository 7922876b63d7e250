"""The policy that says which images may be used: containers-policy.json(5), podman's and skopeo's file, read strictly.

    {"default": [{"type": "reject"}],
     "transports": {"docker": {"registry.example/team": [{"type": "sigstoreSigned", "keyPath": "/etc/keys/team.pub",
                                                          "signedIdentity": {"type": "matchRepository"}}]},
                    "cowshed": {"": [{"type": "insecureAcceptAnything"}]}}}

Images of registries come under `docker`, whatever mirror they came from; those that were loaded, imported or committed
under `cowshed`. A scope's requirements have all to be met. A file that is not wholly understood accepts nothing; what
it asks for and cannot be verified here is a requirement that nothing meets.
"""

from __future__ import annotations

import os

from cowshed.errors import BadUsage, ConfigError
from cowshed.image import reference as references
from cowshed.storage.record import record
from cowshed_runtime.fastjson import loads

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from cowshed.image.reference import Reference

REGISTRIES, LOCAL = "docker", "cowshed"  # transports
ACCEPT, REJECT, SIGNED, UNVERIFIABLE = "accept", "reject", "signed", "unverifiable"
DEFAULT_IDENTITY, ANY = "matchRepoDigestOrExact", "matchAny"
_LIMIT = 1 << 20
_PORT = 443
_KEYS = ("keyPath", "keyPaths", "keyData", "keyDatas")
_ELSEWHERE = {
    "fulcio": "certificates of fulcio", "pki": "certificates of a public key infrastructure",
    "rekorPublicKeyPath": "entries of rekor", "rekorPublicKeyPaths": "entries of rekor",
    "rekorPublicKeyData": "entries of rekor", "rekorPublicKeyDatas": "entries of rekor",
}  # fmt: skip
_REMEDY = "correct it; man containers-policy.json tells what it may say"
# type of a signedIdentity -> the settings that it has
_IDENTITIES: dict[str, tuple[str, ...]] = {
    "matchExact": (), DEFAULT_IDENTITY: (), "matchRepository": (), ANY: (), "exactReference": ("dockerReference",),
    "exactRepository": ("dockerRepository",), "remapIdentity": ("prefix", "signedPrefix"),
}  # fmt: skip


@record(frozen=True)
class Identity:
    """What a signature has to say that it is for."""

    type: str = DEFAULT_IDENTITY
    values: tuple[str, ...] = ()  # in the order of _IDENTITIES


@record(frozen=True)
class Requirement:
    kind: str
    paths: tuple[str, ...] = ()  # files of public keys, any of which will do
    data: tuple[bytes, ...] = ()  # or the keys themselves
    identity: Identity = Identity()
    why: str = ""  # nothing here can meet it


@record(frozen=True)
class Rule:
    """What holds for an image."""

    scope: str  # as messages call it
    requirements: tuple[Requirement, ...]

    @property
    def needs_signatures(self) -> bool:
        return any(each.kind == SIGNED for each in self.requirements)


@record(frozen=True)
class Policy:
    path: str
    default: tuple[Requirement, ...]
    transports: dict[str, dict[str, tuple[Requirement, ...]]]

    @property
    def accepts_all(self) -> bool:
        """Whether there is nothing to be asked, whatever the image."""
        scopes = [s for name in (REGISTRIES, LOCAL) for s in self.transports.get(name, {}).values()]
        return all(each.kind == ACCEPT for requirements in (self.default, *scopes) for each in requirements)

    def of(self, image: Reference) -> Rule:
        """For an image of a registry: that of the most specific scope."""
        return self._first(REGISTRIES, scopes(image))

    @property
    def of_local(self) -> Rule:
        """For an image that no registry has brought."""
        return self._first(LOCAL, [""])

    def _first(self, transport: str, names: list[str]) -> Rule:
        there = self.transports.get(transport, {})
        for name in names:
            if name in there:
                return Rule(f"scope {name or 'of all'} of {transport}", there[name])
        return Rule("the default", self.default)


def scopes(image: Reference) -> list[str]:
    """The scopes that an image is in, the most specific first (containers-policy.json, docker:). However a host is
    written, it is the same one."""
    hosts = _spellings(image.registry)
    path = f"/{image.repository}"
    found = [host + image.name[len(image.registry) :] for host in hosts]
    while path:
        found += [host + path for host in hosts]
        path = path.rpartition("/")[0]
    found += hosts
    domain = hosts[0].partition(":")[0]
    while "." in domain:
        domain = domain.partition(".")[2]
        found.append(f"*.{domain}")
    return [*found, ""]


def _spellings(registry: str) -> list[str]:
    """How a policy may write a host, the usual way first: the port that is meant where none is written may be
    written."""
    host, colon, port = registry.lower().rpartition(":")
    if not colon or port.endswith("]"):
        plain = _host(registry.lower())
        return [plain, f"{plain}:{_PORT}"]
    plain, number = _host(host), int(port)  # which may have been written with zeros before it
    return [f"{plain}:{number}", *([plain] if number == _PORT else [])]


def _host(name: str) -> str:
    """A host without its port in one way of many: 127.1 and [::ffff:7f00:1] are 127.0.0.1."""
    from _socket import AF_INET6, inet_aton, inet_ntoa, inet_ntop, inet_pton  # `socket` brings much else

    try:
        if name.startswith("["):
            address = inet_ntop(AF_INET6, inet_pton(AF_INET6, name[1:-1]))
            is_mapped = address.startswith("::ffff:") and "." in address
            return address.removeprefix("::ffff:") if is_mapped else f"[{address}]"
        return inet_ntoa(inet_aton(name))
    except OSError:  # it is no address
        return references.canonical_host(name)


# ---------------------------------------------------------------- identities


def matches(identity: Identity, wanted: Reference, said: str) -> bool:
    """Whether a signature that says it is for `said` ("": it does not say) is one for the image that is wanted.

    A signature without a name meets `matchAny` alone: everything else is a promise about names. By a digest, names of
    repositories are compared; by a tag, the tag too, unless the rule is for the repository (as containers/image does).
    """
    if identity.type == ANY:
        return True
    theirs = _split(said)
    if theirs is None:
        return False
    if identity.type == "exactRepository":
        exact = _split(identity.values[0])
        return exact is not None and exact[0] == theirs[0]
    if identity.type == "exactReference":
        exact = _split(identity.values[0])
        return exact is not None and exact[1:] != ("", "") and exact == theirs
    name = f"{wanted.registry}/{wanted.repository}"
    if identity.type == "matchRepository":
        return theirs[0] == name
    if identity.type == "remapIdentity":
        prefix, signed = identity.values
        if name == prefix or name.startswith(f"{prefix}/"):
            name = signed + name[len(prefix) :]
    if theirs[1:] == ("", ""):
        return False
    if wanted.digest:
        return theirs[0] == name and (identity.type != "matchExact" or theirs[2] == wanted.digest)
    return theirs == (name, wanted.tag, "")


def _split(text: str) -> tuple[str, str, str] | None:
    """(name, tag, digest) of a reference, tag and digest "" unless they are written. None if it is none."""
    try:
        parsed = references.parse(text)
    except BadUsage:
        return None
    tagged = ":" in text.partition("@")[0].rpartition("/")[2]
    return f"{parsed.registry}/{parsed.repository}", parsed.tag if tagged else "", parsed.digest


# ---------------------------------------------------------------- reading


def read(path: str) -> Policy:
    """The policy in a file. ConfigError if it cannot be read or is not wholly understood: then nothing is accepted."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            data = b""
            while len(data) <= _LIMIT and (piece := os.read(fd, _LIMIT + 1)):
                data += piece
        finally:
            os.close(fd)
    except OSError as error:
        raise _wrong(path, f"it cannot be read ({error.strerror})") from None
    return parse(data, path)


def parse(data: bytes, path: str) -> Policy:
    """The policy that the bytes of the file at path are. ConfigError."""
    if len(data) > _LIMIT:
        raise _wrong(path, f"it has more than {_LIMIT} bytes")
    try:
        value = loads(data, unique=True)
        fields = _object(value, "it", ("default", "transports"))
        if "default" not in fields:
            raise ValueError("it has no default")
        transports = {
            transport: _scopes(_object(table, f"transport {transport}"), transport)
            for transport, table in _object(fields.get("transports", {}), "transports").items()
        }
        return Policy(path, _requirements(fields["default"], "default"), transports)
    except ValueError as error:
        raise _wrong(path, str(error)) from None


def _wrong(path: str, why: str) -> ConfigError:
    return ConfigError(f"no image is accepted, because of the policy file {path}: {why}", remedy=_REMEDY)


def _object(value: Any, what: str, known: tuple[str, ...] = ()) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError(f"{what} is no JSON object")
    for key in value if known else ():
        if key not in known:
            raise ValueError(f"{what} has {key[:100]!r}, which is not known")
    return value


def _scopes(table: dict[str, Any], transport: str) -> dict[str, tuple[Requirement, ...]]:
    found: dict[str, tuple[Requirement, ...]] = {}
    for scope, listed in table.items():
        key = _of_registries(scope) if transport == REGISTRIES else scope
        if key in found:
            raise ValueError(f"{transport} has the scope {key!r} twice")
        found[key] = _requirements(listed, f"scope {scope or 'of all'!r} of {transport}")
    return found


def _of_registries(scope: str) -> str:
    """A scope of images of registries as `scopes` writes it. ValueError for one that no image can be in: what it asks
    for would hold for nothing."""
    host, slash, rest = scope.partition("/")
    if not scope:
        return scope
    if scope.startswith("*."):
        if references.is_host(scope[2:]) and ":" not in scope:
            return scope.lower()
    elif not references.is_short(f"{host}/x"):
        try:
            image = references.parse(scope if slash else f"{host}/x")
        except BadUsage:
            pass
        else:
            if not {":", "@"} & {*rest} or image.name[len(image.registry) + 1 :] == rest:
                return _spellings(image.registry)[0] + slash + rest
    raise ValueError(f"{REGISTRIES} has the scope {scope[:200]!r}, which no image can be in: "
                     "a scope is HOST[:PORT][/NAME[:TAG|@DIGEST]] or *.DOMAIN")  # fmt: skip


def _requirements(value: Any, where: str) -> tuple[Requirement, ...]:
    if not isinstance(value, list) or not value:
        raise ValueError(f"{where} is no list of requirements")
    return tuple(_requirement(each, where) for each in value)


def _requirement(value: Any, where: str) -> Requirement:
    kind = _object(value, f"a requirement of {where}").get("type")
    if kind == "insecureAcceptAnything" or kind == "reject":
        _object(value, f"{kind} of {where}", ("type",))
        return Requirement(REJECT if kind == "reject" else ACCEPT)
    if kind == "signedBy":
        return Requirement(UNVERIFIABLE, why="it has to be signed with GPG, which is not verified here")
    if kind == "sigstoreSigned":
        return _signed(value, f"sigstoreSigned of {where}")
    raise ValueError(f"{where} has a requirement of the type {str(kind)[:100]!r}, which is not known")


def _signed(value: dict[str, Any], where: str) -> Requirement:
    _object(value, where, ("type", "signedIdentity", *_KEYS, *_ELSEWHERE))
    identity = _identity(value.get("signedIdentity", {"type": DEFAULT_IDENTITY}), where)
    for key, what in _ELSEWHERE.items():
        if key in value:
            return Requirement(UNVERIFIABLE, why=f"its signature has to be proven with {what}, which is not done here")
    given = [key for key in _KEYS if key in value]
    if len(given) != 1:
        raise ValueError(f"{where} has {len(given)} of {', '.join(_KEYS)} instead of one")
    said = value[given[0]]
    texts = said if given[0].endswith("s") else [said]
    if not isinstance(texts, list) or not texts or not all(isinstance(t, str) and t for t in texts):
        raise ValueError(f"{where}.{given[0]} is no {'list of texts' if given[0].endswith('s') else 'text'}")
    if given[0].startswith("keyPath"):
        for path in texts:
            if not path.startswith("/") or not path.isprintable():
                raise ValueError(f"{where}.{given[0]}: {path[:200]!r} is no absolute path")
        return Requirement(SIGNED, paths=tuple(texts), identity=identity)
    return Requirement(SIGNED, data=tuple(_base64(t, f"{where}.{given[0]}") for t in texts), identity=identity)


def _base64(text: str, where: str) -> bytes:
    from binascii import a2b_base64

    try:
        return a2b_base64(text.encode(), strict_mode=True)
    except ValueError:
        raise ValueError(f"{where} is not base64") from None


def _identity(value: Any, where: str) -> Identity:
    kind = _object(value, f"signedIdentity of {where}").get("type")
    if not isinstance(kind, str) or kind not in _IDENTITIES:
        raise ValueError(f"signedIdentity of {where} has the type {str(kind)[:100]!r}, which is not known")
    names = _IDENTITIES[kind]
    _object(value, f"signedIdentity of {where}", ("type", *names))
    values = tuple(value.get(name) for name in names)
    for name, text in zip(names, values, strict=True):
        if not isinstance(text, str) or not text or (name.startswith("docker") and _split(text) is None):
            raise ValueError(f"{name} of {where} is {str(text)[:100]!r}, which is no name")
    return Identity(kind, values)
