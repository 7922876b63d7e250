"""The scenarios, in the order in which they are done: what most people ask for comes first."""

from __future__ import annotations

from cowshed.bench.scenarios import data, images, life, limits

TYPE_CHECKING = False
if TYPE_CHECKING:
    from cowshed.bench.scenario import Scenario

ALL: tuple[type[Scenario], ...] = (
    life.Child, images.Unpack, images.Build, images.Changes, images.Commit, data.CopyUp, data.Database, data.Metadata,
    life.Removal, data.Density, life.Storm, data.Lookup, limits.Quota, images.UnpackAtOnce, images.Export, limits.Full,
    life.Open, life.Aging,
)  # fmt: skip

# Workloads of the list W1 … W22 that no scenario is for, and why
LEFT_OUT = {
    "W17": "the first start under a new map of ids: the engine maps ids on mounts, and starts no container so yet",
    "W20": "commits that a power cut loses: counted by cases X03 of the conformance suite; `commit` has the cost",
    "W21": "conversion between drivers: `storage convert` tells its own times",
    "W22": "a real image until its first line: that is the engine's time more than a driver's; `make bench` has it",
}
