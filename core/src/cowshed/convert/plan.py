"""What a conversion comes to: steps in order, what they take, what is lost. Pure: facts in, a plan out.

A layer of an image is known by its chain id; it may lie in several drivers, and is taken from one of them. A container
is taken from its own.
"""

from __future__ import annotations

from cowshed import words
from cowshed.layers.digest import Mask
from cowshed.storage import api
from cowshed.storage.kit.places import SHARING
from cowshed.storage.record import field, record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

# What a conversion was seen to take on one core of a small machine, where no earlier one of this store tells better:
# to make and to look at each inode twice, and to copy each byte and read it twice.
_PER_INODE, _PER_BYTE = 0.0003, 1 / 150e6  # seconds


@record(frozen=True)
class Place:
    """A driver as it is open in this store, and where it lies."""

    driver: str
    can: api.Capabilities
    device: int  # of the file system that its directory lies on
    file_system: str  # what kind of file system that is
    free: int | None = None  # bytes


@record(frozen=True)
class Source:
    """A committed layer in one driver."""

    number: int
    driver: str
    size: int  # bytes that are its own
    inodes: int
    trusted: bool = True  # False: a power cut may have cut it


@record(frozen=True)
class Link:
    """A layer of an image, wherever it lies."""

    chain: str
    diff: str
    below: str  # chain id of the layer below, ""
    sources: tuple[Source, ...]  # in other drivers than the target
    twin: int | None = None  # its number in the target, if it is there


@record(frozen=True)
class Box:
    """A container."""

    number: int
    id: str
    name: str
    driver: str
    running: bool
    below: str  # chain id of the layer that it stands on, ""
    size: int = 0
    inodes: int = 0
    quota: api.Quota = api.Quota()
    obstacle: str = ""  # why it cannot be taken just now


@record(frozen=True)
class Facts:
    target: Place
    places: Mapping[str, Place]  # of the drivers that there is something in, by name
    links: Mapping[str, Link]  # by chain id
    images: Mapping[str, str]  # name of an image → chain id of its top layer
    boxes: tuple[Box, ...]
    pace: float = 1.0  # how long an earlier conversion took, by what was expected of it


@record(frozen=True)
class Wanted:
    images: bool = False  # all
    containers: bool = False  # all that do not run
    image_names: tuple[str, ...] = ()
    container_ids: tuple[str, ...] = ()
    lossy: bool = False


@record(frozen=True)
class Step:
    kind: str  # layer, container
    name: str  # for people
    source: str  # driver
    number: int
    how: str  # reflink, copy, "send FORMAT", there
    size: int  # bytes that it is expected to take in the target
    data: int  # bytes to be read
    inodes: int
    chain: str = ""  # of a layer
    diff: str = ""
    below: str = ""  # chain id of the layer that it stands on
    others: tuple[int, ...] = ()  # the same layer in further drivers
    container: str = ""  # id
    quota: api.Quota = api.Quota()


@record(frozen=True)
class Loss:
    """Something that the target cannot hold, or does otherwise."""

    code: str
    text: str
    certain: bool = False  # it is known to be there; else only if a tree turns out to have it


@record(frozen=True)
class Plan:
    target: str
    steps: tuple[Step, ...]
    losses: tuple[Loss, ...]
    refused: tuple[str, ...]  # why nothing is begun
    left_out: tuple[str, ...]
    size: int  # bytes that are wanted in the target
    free: int | None
    seconds: float
    masks: Mapping[str, Mask] = field(default_factory=dict)  # by source driver: what digests leave out

    @property
    def sources(self) -> tuple[str, ...]:
        """The drivers that something is taken from."""
        return tuple(sorted({step.source for step in self.steps}))

    @property
    def work(self) -> tuple[Step, ...]:
        return tuple(step for step in self.steps if step.how != "there")


def plan(facts: Facts, wanted: Wanted) -> Plan:
    refused: list[str] = []
    left_out: list[str] = []
    boxes = _boxes(facts, wanted, refused, left_out)
    tops = [top for name, top in facts.images.items() if wanted.images or name in wanted.image_names]
    chains = _chains(facts, [*tops, *[box.below for box in boxes]])
    losses = _losses(facts, boxes, chains)
    limit = facts.target.can.max_depth
    steps: list[Step] = []
    skipped: set[str] = set()
    for chain in chains:
        link = facts.links[chain]
        deep = limit is not None and _depth(facts, chain) > limit
        if link.below in skipped:
            skipped.add(chain)
        elif link.twin is None and deep:
            refused.append(
                f"layer {_short(link)} would be number {_depth(facts, chain)} of its chain, "
                f"and driver {facts.target.driver} takes {limit}"
            )
        elif link.twin is None and not any(source.trusted for source in link.sources):
            skipped.add(chain)
            left_out.append(
                f"layer {_short(link)} may have been cut by a power cut: it is made again from its archive when it is "
                "needed"
            )
        else:
            steps += _layer(facts, link)
    for box in boxes:
        if box.below in skipped:
            left_out.append(f"container {box.name} stands on a layer that a power cut may have cut: start it once")
            continue
        refused += _limits(facts, box, lossy=wanted.lossy)
        how = _how(facts, box.driver, sends=False)
        data, inodes = _own(facts, box.driver, box.size, box.inodes, box.below)
        taken = 0 if how == "reflink" else data
        if how == "copy" and facts.target.can.granularity is api.Granularity.TREE:
            taken += _whole(facts, box.below)
        steps.append(
            Step("container", box.name, box.driver, box.number, how, taken, data, inodes, below=box.below,
                 container=box.id, quota=_quota(facts.target.can, box.quota))
        )  # fmt: skip
    size = sum(step.size for step in steps)
    free = facts.target.free
    if free is not None and size > free:
        refused.append(f"{words.size(size)} are wanted, and driver {facts.target.driver} has {words.size(free)} free")
    work = [step for step in steps if step.how != "there"]
    seconds = facts.pace * sum(step.inodes * _PER_INODE + step.data * _PER_BYTE for step in work)
    masks = {name: mask(place.can, facts.target.can, lossy=wanted.lossy) for name, place in facts.places.items()}
    return Plan(
        facts.target.driver, tuple(steps), tuple(losses), tuple(refused), tuple(left_out), size, free, seconds, masks
    )


def mask(source: api.Capabilities, target: api.Capabilities, *, lossy: bool) -> Mask:
    """What a digest leaves out so that both stores can have the same. Times are cut without a word where one of them
    has no finer ones; the rest only if what is lost may be."""
    granularity = max(source.time_granularity, target.time_granularity)
    if not lossy:
        return Mask(granularity)
    lost = {*source.lost_xattrs, *target.lost_xattrs}
    if not (source.acl and target.acl):
        lost.add("system.posix_acl_")
    return Mask(granularity, tuple(sorted(lost)), not (source.char_0_0_visible and target.char_0_0_visible))


def _boxes(facts: Facts, wanted: Wanted, refused: list[str], left_out: list[str]) -> list[Box]:
    """The containers that are to be taken."""
    found = []
    for box in facts.boxes:
        named = box.id in wanted.container_ids
        if not (named or wanted.containers) or box.driver == facts.target.driver:
            continue
        why = "it runs: stop it first" if box.running else box.obstacle
        if not why:
            found.append(box)
        elif named:
            refused.append(f"container {box.name}: {why}")
        else:
            left_out.append(f"container {box.name}: {why}")
    return found


def _chains(facts: Facts, tops: Iterable[str]) -> list[str]:
    """These layers and all below them, each once: one that was just made comes before those that stand on it, and as
    near to them as can be."""
    above: dict[str, list[str]] = {}
    seen: set[str] = set()
    for top in tops:
        chain = top
        while chain and chain not in seen and chain in facts.links:
            seen.add(chain)
            above.setdefault(facts.links[chain].below, []).append(chain)
            chain = facts.links[chain].below
    ordered: list[str] = []
    stack = sorted(above.get("", ()), reverse=True)
    while stack:
        chain = stack.pop()
        ordered.append(chain)
        stack += sorted(above.get(chain, ()), reverse=True)
    return ordered


def _layer(facts: Facts, link: Link) -> list[Step]:
    able = [source for source in link.sources if source.trusted]
    if not able:
        return []  # it is in the target, and nowhere else
    # One that tells what changed is quicker than one that must compare two trees.
    able.sort(key=lambda s: (not _tells(facts.places[s.driver].can), s.driver))
    best = able[0]
    others = tuple(source.number for source in link.sources if source is not best)
    how = "there" if link.twin is not None else _how(facts, best.driver, sends=True)
    data, inodes = _own(facts, best.driver, best.size, best.inodes, link.below)
    size = 0 if how in ("there", "reflink") else data
    if how == "copy" and facts.target.can.granularity is api.Granularity.TREE:
        size = _whole(facts, link.chain)
    return [
        Step("layer", _short(link), best.driver, best.number, how, size, data, inodes, link.chain, link.diff,
             link.below, others)
    ]  # fmt: skip


def _tells(can: api.Capabilities) -> bool:
    return can.diff_tree or can.changes


def _own(facts: Facts, driver: str, size: int, inodes: int, below: str) -> tuple[int, int]:
    """Bytes and inodes that a layer has beside those of the one below. A driver that shares nothing counts both."""
    if facts.places[driver].can.granularity is api.Granularity.TREE and below in facts.links:
        for source in facts.links[below].sources:
            if source.driver == driver:
                return max(size - source.size, 0), max(inodes - source.inodes, 0)
    return size, inodes


def _whole(facts: Facts, chain: str) -> int:
    """The bytes of a whole tree. Of a driver that shares nothing, that is what its layer has."""
    total = 0
    while chain in facts.links:
        link = facts.links[chain]
        whole = [s.size for s in link.sources if facts.places[s.driver].can.granularity is api.Granularity.TREE]
        if whole:
            return total + whole[0]
        total += link.sources[0].size if link.sources else 0
        chain = link.below
    return total


def _how(facts: Facts, source: str, *, sends: bool) -> str:
    one, other = facts.places[source], facts.target
    shared = [fmt for fmt in one.can.transfer_formats if fmt in other.can.transfer_formats]
    if sends and shared:
        return f"send {shared[0]}"
    blocks = api.Granularity.BLOCK in (one.can.granularity, other.can.granularity)
    same = one.device == other.device and one.file_system in SHARING and not blocks
    return "reflink" if same and reaches_files(other.can) else "copy"


def reaches_files(can: api.Capabilities) -> bool:
    """Whether the engine can write to files as they lie, and not only through a file system that is laid over them."""
    return can.diff_tree or can.granularity is not api.Granularity.FILE


# ---------------------------------------------------------------- what is lost


def _losses(facts: Facts, boxes: Sequence[Box], chains: Sequence[str]) -> list[Loss]:
    sources = {box.driver for box in boxes}
    sources |= {source.driver for chain in chains for source in facts.links[chain].sources}
    found = {loss.text: loss for name in sorted(sources) for loss in losses(facts.places[name].can, facts.target.can)}
    for box in boxes:
        for loss in _lost_limits(facts, box):
            found[loss.text] = loss
    return list(found.values())


def losses(source: api.Capabilities, target: api.Capabilities) -> list[Loss]:
    """What a tree of a store with these capabilities may have that one with those cannot hold, or does otherwise."""
    found = [
        Loss("sockets", "sockets, and flags that chattr(1) sets, are not taken along"),
    ]
    found += [
        Loss("xattrs", f"extended attributes {start}* cannot be held")
        for start in target.lost_xattrs
        if start not in source.lost_xattrs
    ]
    if source.acl and not target.acl:
        found.append(Loss("acl", "access lists cannot be held"))
    if source.char_0_0_visible and not target.char_0_0_visible:
        found.append(Loss("device", "character devices 0:0 cannot be held"))
    if source.sparse and not target.sparse:
        found.append(Loss("sparse", "holes in files are filled, which takes space"))
    if target.time_granularity > source.time_granularity:
        found.append(Loss("times", f"times are cut to a multiple of {target.time_granularity} ns"))
    if target.name_max < source.name_max:
        found.append(Loss("names", f"names longer than {target.name_max} bytes cannot be held"))
    found += [
        Loss("names", f"names that begin with {start} cannot be held")
        for start in target.reserved_names
        if start not in source.reserved_names
    ]
    if source.hard_links_survive_copy_up and not target.hard_links_survive_copy_up:
        found.append(Loss("links", "a file of the image with several names is parted when one of them is written to"))
    if source.rename_lower_directory and not target.rename_lower_directory:
        found.append(Loss("rename", "directories of the image can no longer be renamed (EXDEV)"))
    if source.xattrs_removable and not target.xattrs_removable:
        found.append(Loss("xattrs", "an extended attribute that is removed stays, empty"))
    if not source.stale_reads_after_copy_up and target.stale_reads_after_copy_up:
        found.append(Loss("stale", "what was opened before the first write to a file of the image shows old bytes"))
    if source.live_snapshot is not api.Consistency.NONE and target.live_snapshot is api.Consistency.NONE:
        found.append(Loss("snapshots", "running containers cannot be read from a snapshot"))
    if source.durability > target.durability:
        found.append(Loss("durability", "layers do not survive a power cut"))
    return found


def _lost_limits(facts: Facts, box: Box) -> list[Loss]:
    can, quota = facts.target.can, box.quota
    found = []
    if quota.bytes is not None and can.quota is api.QuotaScope.NONE:
        found.append(Loss("quota", f"container {box.name}: its limit of {words.size(quota.bytes)}", certain=True))
    elif quota.bytes is not None and can.quota is api.QuotaScope.TOTAL:
        found.append(
            Loss("quota", f"container {box.name}: its limit, which counts the layers below as well", certain=True)
        )
    if quota.inodes is not None and not can.quota_inodes:
        found.append(Loss("quota", f"container {box.name}: its limit of {quota.inodes} inodes", certain=True))
    return found


def _limits(facts: Facts, box: Box, *, lossy: bool) -> list[str]:
    if lossy:
        return []
    return [f"{loss.text}, cannot be held by driver {facts.target.driver}" for loss in _lost_limits(facts, box)]


def _quota(can: api.Capabilities, quota: api.Quota) -> api.Quota:
    """As much of a limit as the target has."""
    size = quota.bytes if can.quota is api.QuotaScope.OWN else None
    return api.Quota(size, quota.inodes if can.quota_inodes else None)


def _depth(facts: Facts, chain: str) -> int:
    count = 0
    while chain in facts.links:
        count, chain = count + 1, facts.links[chain].below
    return count


def _short(link: Link) -> str:
    return link.diff.rpartition(":")[2][:12]
