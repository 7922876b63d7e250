"""Drivers on the simulation with one fault each: `--driver faulty:NAME`. What must catch them: test_simulated.py."""

import simulated

from cowshed.storage import api
from cowshed_driver_devicemapper import make_plugin
from cowshed_driver_devicemapper.driver import DeviceMapperDriver
from cowshed_driver_devicemapper.pool import Pool


def plugin(kind=DeviceMapperDriver, pool=Pool):
    right = make_plugin(simulated.simulation)

    def opened(root, options, host, *, store):
        of = right.open(root, options, host, store=store)
        of.close()
        there = pool(root, of.pool.known, simulated.simulation(), host)
        return kind(root, options, host, there)

    return api.DriverPlugin(
        right.name, right.api, right.summary, right.options, right.probe, right.init, opened, right.destroy
    )


class ForgetsDevices(DeviceMapperDriver):
    """Deletes the directory of a layer that was removed, and not its device in the pool."""

    def _delete(self, path, device):
        super()._delete(path, None)


class TakesOver(Pool):
    """A thin id that is taken is taken over, instead of another being looked for."""

    def snapshot(self, thin, origin, device):
        super().snapshot(thin, origin, device)
        return True


class WritableWhenCommitted(DeviceMapperDriver):
    """A committed layer is mounted like an active one."""

    def mounts(self, layer, request):
        return super().mounts(api.Layer(layer.id, layer.number, api.Kind.ACTIVE, layer.parent), request)

    def activate(self, layer, *, read_only):
        device = self.device(layer)
        self.pool.activate(self._name(layer), device.thin, device.sectors, frozen=False)


plugin_ForgetsDevices = plugin(ForgetsDevices)
plugin_TakesOver = plugin(pool=TakesOver)
plugin_WritableWhenCommitted = plugin(WritableWhenCommitted)
