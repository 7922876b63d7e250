"""TRANSPORT:PLACE, as skopeo writes it: where an image is, or is to be."""

from __future__ import annotations

from cowshed.errors import BadUsage
from cowshed.image import reference
from cowshed.storage.record import record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from cowshed.image.reference import Reference

STORE = "cowshed"  # the store of this engine, as containers-storage: is that of podman's
KNOWN = {
    "docker": "docker://REGISTRY/REPOSITORY[:TAG|@DIGEST]",
    "oci": "oci:DIRECTORY[:NAME]",
    "oci-archive": "oci-archive:FILE[:NAME]",
    "docker-archive": "docker-archive:FILE[:NAME]",
    "dir": "dir:DIRECTORY",
    STORE: f"{STORE}:IMAGE",
}
_OTHERS = ("containers-storage", "docker-daemon", "ostree", "tarball", "sif")


@record(frozen=True)
class Place:
    transport: str
    path: str  # of a file or directory
    name: str  # of an image in the place, or in the store; "" for the only one
    reference: Reference | None  # of a registry


def parse(text: str) -> Place:
    """BadUsage for anything but one of KNOWN."""
    transport, colon, rest = text.partition(":")
    if transport in _OTHERS and colon:
        raise BadUsage(f"{transport}: is a place of another engine", remedy=f"the store of this one is {STORE}:IMAGE")
    if transport not in KNOWN or not colon:
        raise BadUsage(f"{text[:100]!r} names no place of an image", remedy=f"write one of {', '.join(KNOWN.values())}")
    if transport == "docker":
        if not rest.startswith("//"):
            raise BadUsage(f"{text[:100]!r} names no registry", remedy=f"write {KNOWN['docker']}")
        return Place(transport, "", "", reference.parse(rest[2:]))
    path, name = (rest, "") if transport in ("dir", STORE) else _split(rest)
    if not path:
        raise BadUsage(f"{text!r} names no place of an image", remedy=f"write {KNOWN[transport]}")
    return Place(transport, "", path, None) if transport == STORE else Place(transport, path, name, None)


def _split(text: str) -> tuple[str, str]:
    """PATH[:NAME]; a name may have colons and slashes, a path no colon."""
    path, _, name = text.partition(":")
    return path, name
