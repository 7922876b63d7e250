"""Names of images: [REGISTRY/]REPOSITORY[:TAG][@DIGEST], with docker's rules for what is left out."""

from __future__ import annotations

from cowshed.errors import BadUsage
from cowshed.storage.record import record

_DEFAULT, _LIBRARY = "docker.io", "library/"
_DIGITS = {"sha256": 64, "sha512": 128}
_PART = frozenset("abcdefghijklmnopqrstuvwxyz0123456789._-")
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
    if len(digits) != _DIGITS.get(algorithm, -1) or not all(c in "0123456789abcdef" for c in digits):
        raise BadUsage(f"{text[:100]!r} is no digest", remedy="write sha256: and 64 lower-case hex digits")
    return text


def parse(text: str) -> Reference:
    """BadUsage if text is no name of an image."""
    rest, _, digest = text.partition("@")
    if digest:
        check_digest(digest)
    elif "@" in text:
        raise _bad(text)
    first, slash, after = rest.partition("/")
    if slash and (any(c in first for c in ".:") or first == "localhost" or first != first.lower()):
        registry, rest = first, after
    else:
        registry = _DEFAULT
    repository, colon, tag = rest.rpartition(":")
    if not colon:
        repository, tag = rest, ""
    if registry == _DEFAULT and "/" not in repository:
        repository = _LIBRARY + repository
    parts = repository.split("/")
    if len(repository) > 255 or not all(p and set(p) <= _PART and p[0].isalnum() and p[-1].isalnum() for p in parts):
        raise _bad(text)
    if colon and not (tag and len(tag) <= 128 and set(tag) <= _TAG and tag[0] not in ".-"):
        raise _bad(text)
    return Reference(registry, repository, tag or ("" if digest else "latest"), digest)


def _bad(text: str) -> BadUsage:
    return BadUsage(f"{text!r} is no name of an image", remedy="write [REGISTRY/]NAME[:TAG][@DIGEST] in lower case")
