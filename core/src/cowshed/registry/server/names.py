"""The grammars of what becomes part of a path (distribution-spec, Pulling manifests; image-spec, Digests)."""

from __future__ import annotations

import re

from cowshed import digests
from cowshed.errors import ImageError
from cowshed.image.reference import DIGITS
from cowshed.registry.server.refusals import Refusal

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_PART = r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*"
_NAME = re.compile(rf"{_PART}(?:/{_PART})*", re.ASCII).fullmatch
_TAG = re.compile(r"[a-zA-Z0-9_][a-zA-Z0-9._-]{0,127}", re.ASCII).fullmatch
_DIGEST = re.compile(r"[a-z0-9]+(?:[.+_-][a-z0-9]+)*:[a-zA-Z0-9=_-]+", re.ASCII).fullmatch
_HEX = re.compile(r"[0-9a-f]+", re.ASCII).fullmatch
LONGEST_NAME = 250  # characters: it is the name of a directory, with room for what is written beside it
ALGORITHMS = tuple(DIGITS)


def check_name(text: str) -> str:
    """The name of a repository, if it is one. Refusal."""
    if len(text) > LONGEST_NAME or not _NAME(text):
        raise Refusal("NAME_INVALID", f"{text[:80]!r} is no name of a repository")
    return text


def is_tag(text: str) -> bool:
    return bool(_TAG(text))


def is_digest(text: str) -> bool:
    """Whether it has the form of a digest, of whatever algorithm."""
    return len(text) <= 512 and bool(_DIGEST(text))


def check_digest(text: str) -> str:
    """A digest of an algorithm that is known here. Refusal."""
    algorithm, _, digits = text.partition(":")
    if len(digits) != DIGITS.get(algorithm, -1) or not _HEX(digits):
        known = " or ".join(ALGORITHMS)
        raise Refusal("DIGEST_INVALID", f"{text[:80]!r} is no digest of {known}")
    return text


def hasher(algorithm: str) -> Any:
    """A hash object. Refusal if the algorithm cannot be verified here."""
    if algorithm not in DIGITS:
        raise Refusal("DIGEST_INVALID", f"{algorithm[:40]!r} is not among {', '.join(ALGORITHMS)}")
    try:
        return digests.new(algorithm)
    except ImageError as error:  # blake3 without its package
        raise Refusal("DIGEST_INVALID", str(error)) from None


def digest_of(data: bytes, algorithm: str = "sha256") -> str:
    """The digest of data. Refusal as from `hasher`."""
    hash_ = hasher(algorithm)
    hash_.update(data)
    return f"{algorithm}:{hash_.hexdigest()}"
