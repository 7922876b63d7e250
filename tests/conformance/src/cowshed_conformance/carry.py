"""Layers carried from one store to another, of any driver, as neutral archives: what a conversion does with layers."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

from cowshed.layers import xattrs
from cowshed.storage import api, registry
from cowshed_conformance import archive, marks, tree
from cowshed_conformance.backing import Backing
from cowshed_conformance.harness import Store, SuiteHost
from cowshed_conformance.target import Target, resolve


@dataclass
class Carried:
    """What has been carried from one store to another: the twin of each layer, and the digest of its archive."""

    twins: dict[api.Layer, api.Layer] = field(default_factory=dict)
    digests: dict[api.Layer, str] = field(default_factory=dict)


def carry(source: Store, layers: Sequence[api.Layer], target: Store, done: Carried | None = None) -> Carried:
    """Make the twins of layers, parents first, that `done` does not have yet. NoSpace and others as `apply` raises."""
    done = done or Carried()
    for layer in layers:
        if layer not in done.twins:
            parent = done.twins[layer.parent] if layer.parent is not None else None
            _, data = archive.of_engine(source, layer.parent, layer)
            twin = target.new(parent)
            archive.unpack(target, twin, data)
            done.twins[layer] = target.commit(twin) if layer.kind is api.Kind.COMMITTED else twin
            done.digests[layer] = hashlib.sha256(data).hexdigest()
    return done


def digests(store: Store, layers: Sequence[api.Layer]) -> list[str]:
    return [hashlib.sha256(archive.of_engine(store, layer.parent, layer)[1]).hexdigest() for layer in layers]


def partners(target: Target, backing: Backing) -> Iterator[Target]:
    """Every other driver that is usable here; the case is skipped if there is none."""
    found = 0
    for name in registry.names():
        if name == target.plugin.name:
            continue
        other = resolve(name, {}, seed=target.seed, level=target.level)
        if other.plugin.probe(backing.place(), other.options, SuiteHost()).verdict is not api.Verdict.UNUSABLE:
            found += 1
            yield other
    if not found:
        marks.skip("plan", "no other driver is usable here")


# ---------------------------------------------------------------- what is lost

NO_LIMIT = api.Quota()


def losses(
    before: tree.Tree, capabilities: api.Capabilities, *, depth: int = 1, quota: api.Quota = NO_LIMIT
) -> set[str]:
    """What of a tree, on so many layers, goes through no store with these capabilities, be it the one that it is taken
    from or the one that gets it: known before anything is done. Attributes by the beginnings of their names."""
    found: set[str] = set()
    keys = {key for node in before.values() for key, _ in node.xattrs}
    starts = (*capabilities.lost_xattrs, *xattrs.REFUSED)  # the latter are in no archive
    found.update(start for start in starts if any(key.startswith(start) for key in keys))
    if not capabilities.acl and any(key.startswith("system.posix_acl_") for key in keys):
        found.add("system.posix_acl_")
    if not capabilities.char_0_0_visible and any(n.kind == "char" and n.content == "0:0" for n in before.values()):
        found.add("char 0:0")
    if capabilities.max_depth is not None and depth > capabilities.max_depth:
        found.add("depth")
    if quota.bytes is not None and capabilities.quota is api.QuotaScope.NONE:
        found.add("quota")
    if quota.inodes is not None and not capabilities.quota_inodes:
        found.add("quota of inodes")
    return found


def lost(before: tree.Tree, after: tree.Tree) -> set[str]:
    """What of a tree is not there any more: attributes by name, the rest in the words of a difference."""
    found: set[str] = set()
    for path, old in before.items():
        new = after.get(path)
        if new is None:
            found.add("char 0:0" if old.content == "0:0" else f"{path!r} is missing")
            continue
        gone = [pair for pair in old.xattrs if pair not in new.xattrs]
        found.update(key for key, _ in gone)
        kept = tuple(pair for pair in old.xattrs if pair not in gone)
        found.update(tree.differences({path: replace(old, xattrs=kept)}, {path: new}))
    found.update(f"{path!r} is there and should not be" for path in after.keys() - before.keys())
    return found
