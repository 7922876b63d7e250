"""A driver of full copies that has the abilities which most drivers lack, and is right; then one fault each in them.

Called as `--driver able:NAME`; what a fault must be caught by is said in test_mutants.py.
"""

import filecmp
import json
import os
import shutil
import stat
import tempfile
import time

from broken import plugin, with_capabilities

from cowshed.storage import api
from cowshed.storage.errors import Damaged, NotFound
from cowshed.storage.kit.trees import copy_tree
from cowshed_driver_copy.driver import CopyDriver
from cowshed_linux import mount

FORMAT = "place"  # names the directory of the layer, which the receiver copies


class Able(CopyDriver):
    @property
    def capabilities(self):
        return with_capabilities(
            super().capabilities, changes=True, changes_exact=True, transfer_formats=(FORMAT,), self_check=True
        )

    # ---------------------------------------------------------------- changes

    def changes(self, lower, upper):
        old = entries(self._at.require(lower)) if lower is not None else {}
        new = entries(self._at.require(upper))
        for path in sorted({*old, *new}):
            kind = self.compare(old.get(path), new.get(path))
            if kind is not None:
                yield api.Change(os.fsencode(path), kind)

    def compare(self, old, new):
        """What has become of a path; None is nothing."""
        if new is None:
            return api.ChangeKind.DELETED
        if old is None:
            return api.ChangeKind.ADDED
        same = attributes(old) == attributes(new)
        if same and stat.S_ISREG(os.lstat(new).st_mode):
            same = filecmp.cmp(old, new, shallow=False)
        return None if same else api.ChangeKind.MODIFIED

    # ---------------------------------------------------------------- transfer

    def send(self, layer, base, fmt, out):
        out.write(json.dumps({"layer": self._at.require(layer)}).encode())

    def receive(self, new, base, fmt, source, durability):
        if self._at.exists(new):
            return {}
        try:
            place = json.loads(source.read())["layer"]
        except ValueError:
            raise Damaged("what was received names no layer", layer=new.id) from None
        temporary = self._at.temporary(new)
        self.fill(place, f"{temporary}/root")
        os.rename(temporary, self._at.layer(new))
        return {}

    def fill(self, place, target):
        copy_tree(place, target)

    # ---------------------------------------------------------------- check

    def check(self, layers, *, deep):
        for layer in layers:
            if not self._at.exists(layer):
                yield api.Finding("missing", f"layer {layer.id} is missing", layer.id)

    def repair(self, finding): ...


def entries(root):
    """path below root, "" for itself → where it lies."""
    found = {"": root}
    for where, folders, names in os.walk(root):
        for name in (*folders, *names):
            found[f"{where}/{name}"[len(root) + 1 :]] = f"{where}/{name}"
    return found


def attributes(path):
    status = os.lstat(path)
    target = os.readlink(path) if stat.S_ISLNK(status.st_mode) else ""
    size = status.st_size if stat.S_ISREG(status.st_mode) else 0
    pairs = [
        (name, os.getxattr(path, name, follow_symlinks=False)) for name in os.listxattr(path, follow_symlinks=False)
    ]
    return (
        status.st_mode,
        status.st_uid,
        status.st_gid,
        status.st_mtime_ns,
        status.st_rdev,
        size,
        target,
        sorted(pairs),
    )


# ---------------------------------------------------------------- faults of changes


class MissesHardLinks(Able):
    """A new name of a file that was there is no change: as a stream of inodes has it."""

    def compare(self, old, new):
        if old is None and new is not None and os.lstat(new).st_nlink > 1:
            return None
        return super().compare(old, new)


class MissesReuse(Able):
    """A file that was deleted and made again under its name is taken for the old one if the size is the same."""

    def compare(self, old, new):
        if old is not None and new is not None and stat.S_ISREG(os.lstat(new).st_mode):
            before, after = os.lstat(old), os.lstat(new)
            if stat.S_IFMT(before.st_mode) == stat.S_IFMT(after.st_mode) and before.st_size == after.st_size:
                return None
        return super().compare(old, new)


class RenameIsDeletion(Able):
    """Of a rename only the old name is told."""

    def changes(self, lower, upper):
        found = list(super().changes(lower, upper))
        gone = any(change.kind is api.ChangeKind.DELETED for change in found)
        return (change for change in found if not (gone and change.kind is api.ChangeKind.ADDED))


class ChangesOnce(Able):
    """What was told once is not told again."""

    told = ()

    def changes(self, lower, upper):
        found = [change for change in super().changes(lower, upper) if change.path not in self.told]
        self.told = (*self.told, *[change.path for change in found])
        return iter(found)


# ---------------------------------------------------------------- faults of activation


class Activated(Able):
    """Claims activation. The engine looks for a mounted device and finds none: what holds a layer is not seen."""

    @property
    def capabilities(self):
        return with_capabilities(super().capabilities, activation=True)

    def activate(self, layer, *, read_only):
        self._at.require(layer)

    def deactivate(self, layer): ...


class ActivationLeaks(Activated):
    """The first use of a layer makes something that is never taken away."""

    def activate(self, layer, *, read_only):
        super().activate(layer, read_only=read_only)
        os.makedirs(f"{self._at.root}/devices/{layer.id}", exist_ok=True)

    def scan(self):
        yield from super().scan()
        if os.path.isdir(f"{self._at.root}/devices"):
            for name in os.listdir(f"{self._at.root}/devices"):
                yield api.StoredObject(api.ObjectKind.AUXILIARY, f"devices/{name}", name)


class DeactivateForgotten(Activated):
    """What activate() has mounted stays mounted."""

    def activate(self, layer, *, read_only):
        super().activate(layer, read_only=read_only)
        mount.mount("tmpfs", tempfile.mkdtemp(), "tmpfs")


# ---------------------------------------------------------------- faults of snapshots, transfer, checks, usage


class SnapshotTorn(Able):
    """A layer is copied while it is written to, its last file some time after the others."""

    @property
    def capabilities(self):
        return with_capabilities(super().capabilities, live_snapshot=api.Consistency.CRASH)

    def snapshot(self, active, new, durability):
        if not self._at.exists(new):
            source, temporary = self._at.require(active), self._at.temporary(new)
            copy_tree(source, f"{temporary}/root")
            last = max((name for name in os.listdir(source) if os.path.isfile(f"{source}/{name}")), default="")
            if last == "two":  # which is being written to
                before = os.path.getsize(f"{source}/{last}")
                while os.path.getsize(f"{source}/{last}") < before + 200:
                    time.sleep(0.005)
            if last:
                shutil.copy2(f"{source}/{last}", f"{temporary}/root/{last}")
            os.rename(temporary, self._at.layer(new))
        return {}


class TransferLosesAttributes(Able):
    def fill(self, place, target):
        super().fill(place, target)
        for path in entries(target).values():
            for name in os.listxattr(path, follow_symlinks=False):
                os.removexattr(path, name, follow_symlinks=False)


class TakesRubbish(Able):
    """A stream that says nothing makes an empty layer."""

    def receive(self, new, base, fmt, source, durability):
        try:
            return super().receive(new, base, fmt, source, durability)
        except Damaged:
            os.makedirs(self._at.content(new))
            return {}


class CheckFindsNothing(Able):
    def check(self, layers, *, deep):
        return iter(())


class CheckFindsTooMuch(Able):
    """A whole layer is called damaged."""

    def check(self, layers, *, deep):
        yield from super().check(layers, deep=deep)
        if deep and layers:
            yield api.Finding("content", f"layer {layers[0].id} is damaged", layers[0].id)


class UsageNotExact(Able):
    """Claims that what it says comes back, and counts the length of files."""

    @property
    def capabilities(self):
        return with_capabilities(super().capabilities, usage_exact=True)

    def usage(self, layer):
        found = super().usage(layer)
        size = sum(os.lstat(path).st_size for path in entries(self._at.require(layer)).values())
        return api.Usage(own=size, shared=None, inodes=found.inodes, exact=True)


class RemovesParentToo(Able):
    """The last child takes its parent away."""

    def remove(self, layer):
        super().remove(layer)
        if layer.parent is not None and layer.kind is api.Kind.ACTIVE:
            super().remove(layer.parent)


class NotFoundAsEmpty(Able):
    """A layer that is not there is mounted as an empty one."""

    def mounts(self, layer, request):
        try:
            return super().mounts(layer, request)
        except NotFound:
            os.makedirs(f"{self._at.root}/empty", exist_ok=True)
            return api.MountPlan((api.Bind(f"{self._at.root}/empty", True),))


for _kind in list(globals().values()):
    if isinstance(_kind, type) and issubclass(_kind, Able):
        globals()[f"plugin_{_kind.__name__}"] = plugin(_kind)
