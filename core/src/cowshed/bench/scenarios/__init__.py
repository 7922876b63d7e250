"""The scenarios, in the order in which they are done: what most people ask for comes first."""

from __future__ import annotations

from cowshed.bench.scenarios import data, images, life, limits, programs

TYPE_CHECKING = False
if TYPE_CHECKING:
    from cowshed.bench.scenario import Scenario

ALL: tuple[type[Scenario], ...] = (
    life.Child, images.Unpack, images.Build, images.Changes, images.Commit, programs.Ready, data.CopyUp, data.Database,
    data.Metadata, life.Removal, data.Density, life.Storm, data.Lookup, limits.Quota, images.UnpackAtOnce,
    images.Export, images.Convert, programs.Ids, limits.Full, life.Open, life.Aging,
)  # fmt: skip
