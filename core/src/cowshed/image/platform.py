"""Platforms: OS/ARCHITECTURE[/VARIANT] in Go's words, and which of an index's manifests fits one (image-spec
image-index.md)."""

from __future__ import annotations

from cowshed.errors import BadUsage
from cowshed.storage.record import record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

# Other people's words -> (architecture, variant)
_ALIASES = {
    "x86_64": ("amd64", ""), "x86-64": ("amd64", ""), "aarch64": ("arm64", ""), "armhf": ("arm", "v7"),
    "armel": ("arm", "v6"), "armv8l": ("arm", "v7"), "armv7l": ("arm", "v7"), "armv6l": ("arm", "v6"),
    "i386": ("386", ""), "i486": ("386", ""), "i586": ("386", ""), "i686": ("386", ""), "x86": ("386", ""),
    "ppc64el": ("ppc64le", ""), "loongarch64": ("loong64", ""),
}  # fmt: skip
# What a variant is when none is written (containerd's and the image specification's rule)
_DEFAULT = {"arm": "v7", "arm64": "v8", "amd64": "v1"}
# Variants of an architecture, the least able first
_ORDER = {
    "arm": ("v5", "v6", "v7", "v8"), "amd64": ("v1", "v2", "v3", "v4"),
    "ppc64le": ("power8", "power9", "power10", "power11"), "riscv64": ("rva20u64", "rva22u64", "rva23u64"),
}  # fmt: skip
_LETTERS = frozenset("abcdefghijklmnopqrstuvwxyz0123456789._-")


@record(frozen=True)
class Platform:
    os: str
    architecture: str
    variant: str  # "" where the architecture's plain form is meant

    def __str__(self) -> str:
        return "/".join(filter(None, (self.os, self.architecture, self.variant)))


def parse(text: str) -> Platform:
    """OS/ARCHITECTURE[/VARIANT], or an architecture of Linux alone, or an OS alone. BadUsage."""
    parts = text.strip().lower().split("/")
    if not 1 <= len(parts) <= 3 or not all(p and set(p) <= _LETTERS for p in parts):
        raise BadUsage(f"{text!r} is no platform", remedy="write OS/ARCHITECTURE[/VARIANT], as linux/arm64")
    if len(parts) == 1:
        if parts[0] in ("linux", "windows", "darwin", "freebsd"):
            host_ = host()
            return Platform(parts[0], host_.architecture, host_.variant)
        parts = ["linux", parts[0]]
    return normal(parts[0], parts[1], parts[2] if len(parts) == 3 else "")


def normal(os_: str, architecture: str, variant: str = "") -> Platform:
    """With Go's words, and without a variant that says nothing."""
    architecture, given = _ALIASES.get(architecture.lower(), (architecture.lower(), ""))
    variant = variant.lower() or given
    if variant[:1].isdigit():
        variant = f"v{variant}"
    if variant == _DEFAULT.get(architecture):
        variant = ""
    return Platform(os_.lower(), architecture, variant)


def host() -> Platform:
    """This machine's."""
    import os

    return normal("linux", os.uname().machine)


def best() -> Platform:
    """This machine's with the highest variant that it runs: what is wanted if nobody names a platform."""
    here = host()
    if here.architecture != "amd64":
        return here
    try:
        with open("/proc/cpuinfo", encoding="ascii", errors="replace") as file:
            flags = next((set(line.split()) for line in file if line.startswith("flags")), set())
    except OSError:
        return here  # no /proc: the plain form runs everywhere
    variant = ""
    for level, needed in _LEVELS:
        if not flags.issuperset(needed.split()):
            break
        variant = level
    return Platform(here.os, here.architecture, variant)


# x86-64 psABI, section 3.1.1, in the words of /proc/cpuinfo
_LEVELS = (
    ("v2", "cx16 lahf_lm popcnt sse4_1 sse4_2 ssse3"),
    ("v3", "abm avx avx2 bmi1 bmi2 f16c fma movbe xsave"),
    ("v4", "avx512f avx512bw avx512cd avx512dq avx512vl"),
)


def of_entry(entry: Mapping[str, Any]) -> Platform | None:
    """The platform of an index's entry, None if it names none. What is no text counts as not said."""
    said = entry.get("platform")
    if not isinstance(said, dict):
        return None
    words = [said.get(key) for key in ("os", "architecture", "variant")]
    texts = [word if isinstance(word, str) else "" for word in words]
    if not texts[0] and not texts[1]:
        return None
    return normal(*texts)


def rank(offered: Platform, wanted: Platform) -> int | None:
    """How far an offered platform is from the wanted one: 0 is exact, more is an older variant that runs there too,
    None does not fit. Where the user names no variant of amd64, ppc64le or riscv64, the plain one is wanted."""
    if (offered.os, offered.architecture) != (wanted.os, wanted.architecture):
        return None
    if offered.variant == wanted.variant:
        return 0
    order = _ORDER.get(wanted.architecture)
    if order is None:
        return _arm64(offered, wanted) if wanted.architecture == "arm64" else None
    mine, theirs = (_at(order, p.variant or _DEFAULT.get(p.architecture, order[0])) for p in (wanted, offered))
    if mine is None or theirs is None or theirs > mine:
        return None
    return mine - theirs


def _at(order: tuple[str, ...], variant: str) -> int | None:
    return order.index(variant) if variant in order else None


def _arm64(offered: Platform, wanted: Platform) -> int | None:
    """v8, v8.1 … v9, v9.1 …: a later one runs the earlier."""
    mine, theirs = (_number(p.variant or "v8") for p in (wanted, offered))
    if mine is None or theirs is None or theirs > mine:
        return None
    return (mine[0] - theirs[0]) * 100 + mine[1] - theirs[1] if mine[0] == theirs[0] else 100 + mine[1]


def _number(variant: str) -> tuple[int, int] | None:
    major, _, minor = variant.removeprefix("v").partition(".")
    if not major.isdigit() or not (minor or "0").isdigit():
        return None
    return int(major), int(minor or 0)
