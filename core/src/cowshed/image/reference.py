"""Names of images: [REGISTRY/]REPOSITORY[:TAG][@DIGEST], with docker's rules for what is left out."""

from __future__ import annotations

from cowshed.errors import BadUsage
from cowshed.storage.record import record

_DEFAULT, _LIBRARY = "docker.io", "library/"
_ALSO_DEFAULT = ("docker.io", "index.docker.io", "registry-1.docker.io")  # in any case
DIGITS = {"sha256": 64, "sha512": 128, "blake3": 64}  # hexadecimal ones of a digest; blake3 needs its package
_PART = frozenset("abcdefghijklmnopqrstuvwxyz0123456789._-")
_HEX = frozenset("0123456789abcdef")
_LABEL = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_")
_TAG = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-")


@record(frozen=True)
class Reference:
    registry: str
    repository: str
    tag: str  # "" if there is only a digest
    digest: str  # "" if there is none

    @property
    def name(self) -> str:
        """Canonical: what the store keeps."""
        base = f"{self.registry}/{self.repository}"
        return f"{base}@{self.digest}" if self.digest else f"{base}:{self.tag}"

    @property
    def familiar(self) -> str:
        """As people write it: without docker.io and library."""
        return familiar(self.name)

    @property
    def wanted(self) -> str:
        """What a registry is asked for: the digest, else the tag."""
        return self.digest or self.tag


def familiar(name: str) -> str:
    return name.removeprefix(f"{_DEFAULT}/").removeprefix(_LIBRARY) if name.startswith(f"{_DEFAULT}/") else name


def check_digest(text: str) -> str:
    """The digest itself, if it is one of a known algorithm: it becomes part of a path. BadUsage."""
    algorithm, _, digits = text.partition(":")
    if len(digits) != DIGITS.get(algorithm, -1) or not set(digits) <= _HEX:
        raise BadUsage(f"{text[:100]!r} is no digest", remedy="write sha256: and 64 lower-case hex digits")
    return text


def parse(text: str) -> Reference:
    """BadUsage if text is no name of an image (distribution-spec, Pulling manifests, with docker's rules)."""
    rest, at, digest = text.partition("@")
    if at:
        check_digest(digest)
    first, slash, after = rest.partition("/")
    if slash and _names_host(first):
        registry, rest = first, after
        if not is_host(registry):
            raise _bad(text)
        registry = canonical_host(registry)
    else:
        registry = _DEFAULT
    repository, colon, tag = rest.rpartition(":")
    if not colon:
        repository, tag = rest, ""
    if registry == _DEFAULT and "/" not in repository:
        if len(repository) == 64 and set(repository) <= _HEX:
            raise BadUsage(f"{text!r} is an id and no name of an image")
        repository = _LIBRARY + repository
    if len(repository) > 255 or not all(map(_is_part, repository.split("/"))):
        raise _bad(text)
    if colon and not (tag and len(tag) <= 128 and set(tag) <= _TAG and tag[0] not in ".-"):
        raise _bad(text)
    return Reference(registry, repository, tag or ("" if digest else "latest"), digest)


def canonical_host(registry: str) -> str:
    """The name of a registry, of docker.io the one that it has in names of images."""
    return _DEFAULT if registry.lower() in _ALSO_DEFAULT else registry


def is_short(text: str) -> bool:
    """Whether a name leaves its registry out, so that docker.io is meant."""
    first, slash, _ = text.partition("@")[0].partition("/")
    return not (slash and _names_host(first))


def _names_host(first: str) -> bool:
    """Whether what stands before the first slash is a registry (docker's rule)."""
    return any(c in first for c in ".:") or first == "localhost" or first != first.lower()


def is_host(text: str) -> bool:
    """HOST[:PORT]; HOST is a domain name, an IPv4 address or an IPv6 address in brackets."""
    if text.startswith("["):
        host, bracket, port = text[1:].partition("]")
        if not bracket or not set(host) <= _HEX | {":"} or ":" not in host or (port and port[0] != ":"):
            return False
        port = port[1:] if port else "0"
    else:
        host, colon, port = text.partition(":")
        port = port if colon else "0"
        if not all(label and set(label) <= _LABEL and label[0] != "-" != label[-1] for label in host.split(".")):
            return False
    return port.isascii() and port.isdigit() and int(port) < 65536


def _is_part(text: str) -> bool:
    """Lower-case letters and digits, with `.`, `_`, `__` or any number of `-` between them."""
    if not text or not set(text) <= _PART or text[0] in "._-" or text[-1] in "._-":
        return False
    runs = "".join(c if c in "._-" else " " for c in text).split()
    return all(run in (".", "_", "__") or not run.strip("-") for run in runs)


def _bad(text: str) -> BadUsage:
    return BadUsage(
        f"{text[:300]!r} is no name of an image", remedy="write [REGISTRY/]NAME[:TAG][@DIGEST] in lower case"
    )
