"""Image configurations (image-spec config.md), checked for what a hostile one could do with a wrong type or value.

The bytes are kept as they came; what is read here is only looked at. Any optional field may be null.
"""

from __future__ import annotations

from cowshed.errors import BadUsage, ImageError
from cowshed.image.platform import Platform, normal
from cowshed.image.reference import check_digest

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

_LONGEST = 1 << 20  # bytes of one text: exec(2) takes no more in one word anyway


def check(config: dict[str, Any], layers: int) -> tuple[str, ...]:
    """The diff ids of a configuration, one per layer, lowest first. ImageError says which field is wrong."""
    rootfs = config.get("rootfs")
    if not isinstance(rootfs, dict) or rootfs.get("type") != "layers":
        raise ImageError("the image's configuration describes no layers (rootfs.type)")
    found = rootfs.get("diff_ids")
    if found is None:
        found = []
    if not isinstance(found, list) or not all(isinstance(d, str) for d in found):
        raise ImageError("the image's configuration lists no diff ids")
    if len(found) != layers:
        raise ImageError(f"the image has {layers} layers and {len(found)} diff ids")
    for digest in found:
        try:
            check_digest(digest)
        except BadUsage as error:
            raise ImageError(f"a diff id of the image: {error}") from None
    own = config.get("config")
    if own is not None:
        if not isinstance(own, dict):
            raise ImageError("the image's configuration has a `config` that is no object")
        _check_own(own)
    history = config.get("history")
    if history is not None and not (isinstance(history, list) and all(isinstance(h, dict) for h in history)):
        raise ImageError("the image's configuration has a `history` that is no list of objects")
    return tuple(found)


def platform(config: dict[str, Any]) -> Platform:
    """What the image says it runs on; an older one that says nothing is of Linux."""
    words = [config.get(key) for key in ("os", "architecture", "variant")]
    os_, architecture, variant = (word if isinstance(word, str) else "" for word in words)
    return normal(os_ or "linux", architecture, variant)


def _text(value: object) -> bool:
    return isinstance(value, str) and len(value) <= _LONGEST and "\0" not in value


def _texts(value: object) -> bool:
    return isinstance(value, list) and all(map(_text, value))


def _variables(value: object) -> bool:
    """NAME=VALUE each: one without `=` would take its value from the engine's environment (CVE-2026-57231)."""
    return _texts(value) and all(word.find("=") > 0 for word in value)  # type: ignore[attr-defined]


def _words(value: object) -> bool:
    return _text(value) or _texts(value)


def _map(value: object) -> bool:
    return isinstance(value, dict) and all(map(_text, value))


def _labels(value: object) -> bool:
    return _map(value) and all(map(_text, value.values()))  # type: ignore[attr-defined]


_FIELDS: dict[str, tuple[Callable[[object], bool], str]] = {
    "User": (_text, "a text"),
    "Env": (_variables, "a list of NAME=VALUE"),
    "Entrypoint": (_words, "a list of words"),
    "Cmd": (_words, "a list of words"),
    "WorkingDir": (_text, "a text"),
    "StopSignal": (_text, "a text"),
    "Volumes": (_map, "an object"),
    "ExposedPorts": (_map, "an object"),
    "Labels": (_labels, "an object of texts"),
    "Shell": (_texts, "a list of words"),
    "Healthcheck": (lambda value: isinstance(value, dict), "an object"),
}


def _check_own(own: dict[str, Any]) -> None:
    for name, (fits, kind) in _FIELDS.items():
        value = own.get(name)
        if value is not None and not fits(value):
            raise ImageError(f"the image's configuration has a {name} that is not {kind}")


def created_ns(text: object) -> int:
    """RFC 3339 to ns since the epoch; 0 for what is none."""
    from datetime import datetime

    if not isinstance(text, str):
        return 0
    whole, _, rest = text.replace("Z", "+00:00").partition(".")
    zone = rest.lstrip("0123456789")
    try:
        return max(0, int(datetime.fromisoformat(whole + zone).timestamp() * 1e9))
    except (ValueError, OverflowError, OSError):
        return 0
