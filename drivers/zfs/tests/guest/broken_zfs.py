"""Drivers with one fault each that is typical of ZFS. What each must be caught by is said in test_zfs_mutants.py."""

import contextlib
import os

from cowshed.storage import api
from cowshed_driver_zfs import names, plugin, stores
from cowshed_driver_zfs.driver import ZfsDriver


class ForgetsTheFree(ZfsDriver):
    """What the kernel tells of objects that are in use now says nothing of a name that has gone."""

    def changes(self, lower, upper):
        with self._host.mounted(self.mounts(upper, api.MountRequest(read_only=True))) as tree:
            for change in super().changes(lower, upper):
                try:
                    os.stat(change.path or b".", dir_fd=tree.fd, follow_symlinks=False)
                except OSError:
                    continue
                yield change


class ComparesWithTheOrigin(ZfsDriver):
    """With the snapshot that a layer was cloned from, whichever layer was asked for."""

    def changes(self, lower, upper):
        return super().changes(lower and upper.parent, upper)


class CountsWhatIsShown(ZfsDriver):
    """`referenced` for `used`: what a layer shows is taken for its own."""

    def usage(self, layer):
        said = super().usage(layer)
        return api.Usage(said.own + (said.shared or 0), 0, None, said.exact)


class LimitsWhatIsShown(ZfsDriver):
    """`refquota` for `quota`: what the parents hold counts too."""

    def prepare(self, new, options):
        data = super().prepare(new, api.LayerOptions(root_uid=options.root_uid, root_gid=options.root_gid))
        if options.quota.bytes is not None:
            name = self._name(new)
            shown = int(self._reader.properties(name, "referenced")["referenced"])
            self._host.run(("zfs", "set", f"refquota={max(shown, options.quota.bytes)}", name), timeout=60)
        return data


class MountsTheDataset(ZfsDriver):
    """A committed layer is mounted as its dataset, which can be written to, and not as its snapshot."""

    def mounts(self, layer, request):
        plan = super().mounts(layer, request)
        step = api.FileSystem("zfs", self._name(layer), read_only=request.read_only, options=request.options)
        return api.MountPlan((step,), plan.subpath)


class KeepsTheOldSnapshot(ZfsDriver):
    """A commit that is repeated takes the snapshot of the one that was killed."""

    def _freeze(self, name, new):
        if not self._zfs.exists(f"{name}@c"):
            super()._freeze(name, new)


class PurgesUnasked(ZfsDriver):
    """What a call is building is taken for the leftover of a dead one."""

    def purge(self, claim, budget):
        return super().purge(lambda _: contextlib.nullcontext(True), budget)


def _plugin(kind=ZfsDriver, **properties):
    """kind: what an opened store is; properties: of the store's dataset, for those that it should have."""

    def opened(root, options, host, *, store):
        driver = stores.open_store(root, options, host, store=store)
        driver.__class__ = kind
        return driver

    def made(root, options, host):
        was = dict(stores._PROPERTIES)
        stores._PROPERTIES.update(properties)
        try:
            return plugin.init(root, options, host)
        finally:
            stores._PROPERTIES.clear()
            stores._PROPERTIES.update(was)

    return api.DriverPlugin(
        plugin.name, plugin.api, plugin.summary, plugin.options, plugin.probe, made, opened, plugin.destroy,
        plugin.priority,
    )  # fmt: skip


def _one_for_all(function):
    """The store's dataset has one name in each pool, whatever the store's identity."""

    def called(*arguments, **more):
        was, names.store = names.store, lambda dataset, _: f"{dataset}/cowshed"
        try:
            return function(*arguments, **more)
        finally:
            names.store = was

    return called


plugin_FoldsCase = _plugin(casesensitivity="insensitive")
plugin_NoAccessLists = _plugin(acltype="off")
plugin_StoresMeet = api.DriverPlugin(
    plugin.name, plugin.api, plugin.summary, plugin.options, plugin.probe, _one_for_all(plugin.init),
    _one_for_all(plugin.open), _one_for_all(plugin.destroy), plugin.priority,
)  # fmt: skip
for _kind in list(globals().values()):
    if isinstance(_kind, type) and issubclass(_kind, ZfsDriver) and _kind is not ZfsDriver:
        globals()[f"plugin_{_kind.__name__}"] = _plugin(_kind)
