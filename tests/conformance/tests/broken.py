"""Drivers with one fault each, for the suite's own tests: `--driver broken:NAME`.

Each is a small subclass of a driver that is right. What a fault must be caught by is said in test_mutants.py.
"""

import contextlib
import os
import tempfile

from cowshed.storage import api
from cowshed.storage.errors import AlreadyExists
from cowshed.storage.kit.trees import copy_tree, remove_tree
from cowshed_driver_aufs import plugin as aufs_plugin
from cowshed_driver_aufs.driver import AufsDriver
from cowshed_driver_btrfs import ioctls, subvolumes
from cowshed_driver_btrfs import plugin as btrfs_plugin
from cowshed_driver_btrfs.driver import BtrfsDriver
from cowshed_driver_copy import plugin as copy_plugin
from cowshed_driver_copy.driver import CopyDriver
from cowshed_driver_overlay import plugin as overlay_plugin
from cowshed_driver_overlay.driver import OverlayDriver
from cowshed_linux import mount

DRIVERS = {
    copy_plugin: CopyDriver,
    overlay_plugin: OverlayDriver,
    btrfs_plugin: BtrfsDriver,
    aufs_plugin: AufsDriver,
}


def with_capabilities(old, **changes):
    names = [name for name in api.Capabilities.__annotations__ if not name.startswith("_")]
    return api.Capabilities(**{**{name: getattr(old, name) for name in names}, **changes})


def plugin(kind, *, probe=None, init=None, open=None):
    """A plug-in like the one that the class is of, which opens this class."""
    of = next(of for of, base in DRIVERS.items() if issubclass(kind, base))
    chosen = getattr(kind, "CHOSEN", {})  # other defaults

    def opened(root, options, host, *, store):
        of.open(root, options, host, store=store).close()
        words = {overlay_plugin: (options, host), btrfs_plugin: (options, host, store)}
        return kind(root, *words.get(of, (host,)))

    return api.DriverPlugin(
        of.name, of.api, of.summary,
        tuple(api.Option(o.name, o.kind, chosen.get(o.name, o.default), o.doc, o.choices, o.creation_only)
              for o in of.options),
        probe or of.probe, init or of.init, open or opened, of.destroy, of.priority,
    )  # fmt: skip


def files_of(root):
    for where, _, names in os.walk(root):
        for name in names:
            path = f"{where}/{name}"
            if not os.path.islink(path):
                yield path


# ---------------------------------------------------------------- faults of copying


class IgnoresQuota(CopyDriver):
    """Claims a limit and does not enforce it."""

    @property
    def capabilities(self):
        return with_capabilities(super().capabilities, quota=api.QuotaScope.OWN)

    def prepare(self, new, options):
        return super().prepare(new, api.LayerOptions())

    def set_quota(self, layer, quota): ...


class LeaksIntoParent(CopyDriver):
    """A child's files are its parent's."""

    def prepare(self, new, options):
        data = super().prepare(new, options)
        if new.parent is not None:
            mine, theirs = self._at.content(new), self._at.content(new.parent)
            for path in files_of(mine):
                os.unlink(path)
                os.link(theirs + path[len(mine) :], path)
        return data


class ReportsTooFewChanges(CopyDriver):
    """changes() knows what was added, and nothing else."""

    @property
    def capabilities(self):
        return with_capabilities(super().capabilities, changes=True)

    def changes(self, lower, upper):
        old, new = self._at.require(lower) if lower is not None else "", self._at.require(upper)
        for path in files_of(new):
            name = path[len(new) + 1 :]
            if not old or not os.path.lexists(f"{old}/{name}"):
                yield api.Change(os.fsencode(name), api.ChangeKind.ADDED)


class NotIdempotent(CopyDriver):
    def prepare(self, new, options):
        if self._at.exists(new):
            raise AlreadyExists(f"layer {new.id} is there already", layer=new.id)
        return super().prepare(new, options)


class LosesAttributes(CopyDriver):
    """Extended attributes are not copied."""

    def prepare(self, new, options):
        data = super().prepare(new, options)
        for where, _, names in os.walk(self._at.content(new)):
            for path in (where, *[f"{where}/{name}" for name in names]):
                for name in os.listxattr(path, follow_symlinks=False):
                    os.removexattr(path, name, follow_symlinks=False)
        return data


class LeavesMount(CopyDriver):
    """remove() leaves something mounted on the host."""

    def remove(self, layer):
        super().remove(layer)
        mount.mount("tmpfs", tempfile.mkdtemp(), "tmpfs")


class CommittedWritable(CopyDriver):
    def mounts(self, layer, request):
        (step,) = super().mounts(layer, request).steps
        return api.MountPlan((api.Bind(step.source, request.read_only),))


class RemoveLeaks(CopyDriver):
    """What is removed is put where neither scan() nor purge() looks."""

    def remove(self, layer):
        os.makedirs(f"{self._at.root}/lost", exist_ok=True)
        with contextlib.suppress(FileNotFoundError):
            os.rename(self._at.layer(layer), f"{self._at.root}/lost/{layer.id}.{layer.kind.value}")


class NonAtomicCommit(CopyDriver):
    """The committed layer is filled in its place."""

    def commit(self, active, new, durability):
        if self._at.exists(active):
            os.makedirs(self._at.layer(new), exist_ok=True)
            remove_tree(self._at.content(new))
            copy_tree(self._at.content(active), self._at.content(new))
            remove_tree(self._at.layer(active))
        return super().commit(active, new, durability)


class WrongError(CopyDriver):
    def prepare(self, new, options):
        if new.parent is not None and not self._at.exists(new.parent):
            raise ValueError(new.parent.id)
        return super().prepare(new, options)


class UsageZero(CopyDriver):
    def usage(self, layer):
        return api.Usage(own=0, shared=None, inodes=None, exact=False)


class MountsWrites(CopyDriver):
    """mounts() writes down when it was called last."""

    def mounts(self, layer, request):
        plan = super().mounts(layer, request)
        with open(f"{self._at.root}/mounted-{os.urandom(4).hex()}", "w"):
            return plan


class SplitsHardLinks(CopyDriver):
    def prepare(self, new, options):
        data = super().prepare(new, options)
        for path in files_of(self._at.content(new)):
            if os.lstat(path).st_nlink > 1:
                copy_tree(path, f"{path}.new")
                os.rename(f"{path}.new", path)
        return data


class CommitKeepsActive(CopyDriver):
    def commit(self, active, new, durability):
        if not self._at.exists(new):
            temporary = self._at.temporary(new)
            copy_tree(self._at.require(active), f"{temporary}/root")
            os.rename(temporary, self._at.layer(new))
        return super().commit(active, new, durability)


class PurgeEatsTemp(CopyDriver):
    """purge() does not ask whose a temporary object is."""

    def purge(self, claim, budget):
        return super().purge(lambda _: contextlib.nullcontext(True), budget)


class DataDiffers(CopyDriver):
    """What a call returns is another thing when it is repeated."""

    def prepare(self, new, options):
        super().prepare(new, options)
        return {"made": os.urandom(4).hex()}


class LosesTimes(CopyDriver):
    """A copy is as old as the copying."""

    def prepare(self, new, options):
        data = super().prepare(new, options)
        for path in files_of(self._at.content(new)):
            os.utime(path)
        return data


class LeaksDescriptor(CopyDriver):
    def scan(self):
        os.open(self._at.root, os.O_RDONLY)
        return super().scan()


class CopyNotDurable(CopyDriver):
    """Claims to survive a power cut and syncs nothing."""

    def commit(self, active, new, durability):
        return super().commit(active, new, api.Durability.NONE)


class HidesErrors(CopyDriver):
    """A layer that could not be made is said to have been made."""

    def prepare(self, new, options):
        with contextlib.suppress(OSError):
            return super().prepare(new, options)
        return {}


# ---------------------------------------------------------------- faults of laying over each other


class ForgetsWhiteout(OverlayDriver):
    """What was deleted is back when the layer is committed."""

    def commit(self, active, new, durability):
        data = super().commit(active, new, durability)
        for path in list(files_of(self._at.content(new))):
            status = os.lstat(path)
            if status.st_rdev == 0 and (status.st_mode & 0o170000) == 0o020000:
                os.unlink(path)
        return data


class DiffForgetsWhiteout(OverlayDriver):
    """The diff tree has no deletions in it."""

    def diff_tree(self, layer):
        diff = super().diff_tree(layer)
        return api.DiffTree(diff.directory, api.Whiteout.XATTR, "user.nothing.")


class ChainReversed(OverlayDriver):
    def mounts(self, layer, request):
        plan = super().mounts(layer, request)
        step = plan.steps[-1]
        if not isinstance(step, api.Overlay):
            return plan
        own = step.lowers[:1] if step.upper is None else ()
        lowers = (*own, *reversed(step.lowers[len(own) :]))
        return api.MountPlan(
            (api.Overlay(lowers, step.upper, step.work, step.read_only, options=step.options),),
            exclusive=plan.exclusive,
        )


class Root0755(OverlayDriver):
    """The upper directory is made as mkdir makes it."""

    def prepare(self, new, options):
        data = super().prepare(new, options)
        os.chmod(self._at.require(new), 0o755)
        return data


class NotDurable(OverlayDriver):
    """Claims to survive a power cut and syncs nothing."""

    def commit(self, active, new, durability):
        return super().commit(active, new, api.Durability.NONE)


class NeverTooDeep(OverlayDriver):
    """The kernel finds out."""

    def commit(self, active, new, durability):
        if self._at.exists(active):
            os.rename(self._at.layer(active), self._at.layer(new))
            remove_tree(f"{self._at.layer(new)}/work")
        return {}


# ---------------------------------------------------------------- faults of snapshots


class FindsNewOnly(BtrfsDriver):
    """changes() tells what is there, as `btrfs subvolume find-new` does, and not what is gone."""

    def changes(self, lower, upper):
        own, found = self._at.require(upper), super().changes(lower, upper)
        return (change for change in found if os.path.lexists(f"{own}/{os.fsdecode(change.path)}"))


class LosesNested(BtrfsDriver):
    """What a container has made as a subvolume is an empty directory in what is committed."""

    def _refuse_nested(self, active): ...


class LimitOfOneSubvolume(BtrfsDriver):
    """A limit counts the layer's own subvolume, and not those that are made in it."""

    CHOSEN = {"quota": "simple"}

    def _set_limit(self, number, place, limit):
        ioctls.limit_group(self._fd, subvolumes.identity(place), referenced=limit)


class LeavesGroups(BtrfsDriver):
    """The quota groups of layers that are gone stay."""

    CHOSEN = {"quota": "simple"}

    def __init__(self, *words):
        super().__init__(*words)
        self._groups.purge = lambda: None


class SnapshotNotDurable(BtrfsDriver):
    """Claims to survive a power cut and leaves the data to the kernel."""

    def commit(self, active, new, durability):
        return super().commit(active, new, api.Durability.NONE)


# ---------------------------------------------------------------- faults of branches


class TidiesWhiteouts(AufsDriver):
    """Whiteouts are taken for bookkeeping: what was deleted is back when the layer is committed."""

    def commit(self, active, new, durability):
        data = super().commit(active, new, durability)
        for path in list(files_of(self._at.content(new))):
            if os.path.basename(path).startswith(".wh.") and not os.path.basename(path).startswith(".wh..wh."):
                os.unlink(path)
        return data


class TidiesOpaque(AufsDriver):
    """Marks of opaque directories are taken for bookkeeping: what they hid is back."""

    def commit(self, active, new, durability):
        data = super().commit(active, new, durability)
        for path in list(files_of(self._at.content(new))):
            if os.path.basename(path) == ".wh..wh..opq":
                os.unlink(path)
        return data


class DiffOfAnotherKind(AufsDriver):
    """The diff tree says that deletions are told as overlay tells them: nothing is deleted, .wh. names are files."""

    def diff_tree(self, layer):
        return api.DiffTree(super().diff_tree(layer).directory, api.Whiteout.CHAR, "user.fuseoverlayfs.")


class BindsTheLowest(AufsDriver):
    """A layer with nothing below it is a plain directory, in which everybody can make whiteouts."""

    def mounts(self, layer, request):
        plan = super().mounts(layer, request)
        (step,) = plan.steps
        return plan if len(step.branches) > 1 else api.MountPlan((api.Bind(step.branches[0], not step.writable),))


class BranchesReversed(AufsDriver):
    def mounts(self, layer, request):
        plan = super().mounts(layer, request)
        (step,) = plan.steps
        branches = (step.branches[0], *reversed(step.branches[1:]))
        return api.MountPlan((api.Aufs(branches, step.writable, step.options),), exclusive=plan.exclusive)


class BranchNotDurable(AufsDriver):
    """Claims to survive a power cut and syncs nothing: copies of lower files are empty then."""

    def commit(self, active, new, durability):
        return super().commit(active, new, api.Durability.NONE)


# ---------------------------------------------------------------- faults of plug-ins


def _open_makes(root, options, host, *, store):
    copy_plugin.init(root, options, host)
    return CopyDriver(root, host)


def _probe_leaves(root, options, host):
    report = copy_plugin.probe(root, options, host)
    os.makedirs(f"{root}/probed", exist_ok=True)
    return report


def _switches_quota_on(root, options, host):
    store = btrfs_plugin.init(root, options, host)
    fd = ioctls.directory(root)
    ioctls.quota_ctl(fd, ioctls.QUOTA_ENABLE_SIMPLE)
    os.close(fd)
    return store


switches_quota_on = plugin(BtrfsDriver, init=_switches_quota_on)
open_makes_a_store = plugin(CopyDriver, open=_open_makes)
probe_leaves_something = plugin(CopyDriver, probe=_probe_leaves)
for _kind in list(globals().values()):
    if isinstance(_kind, type) and issubclass(_kind, tuple(DRIVERS.values())):
        globals()[f"plugin_{_kind.__name__}"] = plugin(_kind)
