"""Typed rows of the store's tables."""

from __future__ import annotations

from cowshed.storage.record import field, record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


@record(frozen=True)
class LayerRow:
    number: int  # 1 … 2**24-1: lock byte, project id, thin device id
    id: str  # 32 hex digits
    driver: str
    kind: str  # active, committed
    parent: int | None
    chain_id: str | None
    diff_id: str | None
    data: dict[str, Any]  # what the driver said of it
    durable: bool  # survives a power cut
    boot_id: str  # of the boot in which it was made
    created: int  # ns since the epoch


@record(frozen=True)
class JournalRow:
    """What was begun with a layer and is not known to have ended."""

    number: int
    op: str  # prepare, run, apply, commit, remove
    args: dict[str, Any]
    driver: str


@record(frozen=True)
class DriverRow:
    name: str
    store: str  # identity that the driver's init() gave
    options: dict[str, Any]  # those that creation fixed
    remembered: dict[str, Any]  # where its plug-in was found


@record(frozen=True)
class ImageRow:
    id: str  # sha256:… of the config
    manifest_digest: str
    manifest: bytes
    media_type: str
    config: bytes
    diff_ids: tuple[str, ...]
    chain_ids: tuple[str, ...]
    blobs: tuple[tuple[str, str, int], ...]  # digest, media type, size: lowest layer first
    platform: str
    size: int
    created: int
    pulled: int


@record(frozen=True)
class ContainerRow:
    number: int
    id: str
    name: str
    image_id: str | None
    image_ref: str
    driver: str
    state: str  # creating, created, running, exited, removing
    created: int
    config: dict[str, Any]  # all that the caller asked for
    started: int | None = None
    finished: int | None = None
    pid: int | None = None
    exit_code: int | None = None
    error: str = ""
    oom: bool = False
    restarts: int = 0
    wanted: str = "stopped"
    labels: dict[str, str] = field(default_factory=dict)
    runtime: dict[str, Any] = field(default_factory=lambda: {"name": "native"})  # see cowshed.runtimes.choice


@record(frozen=True)
class VolumeRow:
    name: str
    created: int
    anonymous: bool
    labels: dict[str, str]
