"""A driver with activation that never lets go of what it has set up: `--driver stays_active:plugin`."""

from cowshed_testing import loops

from cowshed.storage import api


class StaysActive(loops.LoopDriver):
    def deactivate(self, layer): ...


def opened(root, options, host, *, store):
    loops.open_store(root, options, host, store=store).close()
    return StaysActive(root, host)


plugin = api.DriverPlugin(
    name=loops.NAME,
    api=api.API_VERSION,
    summary="images on loop devices that stay",
    options=(),
    probe=loops.probe,
    init=loops.init,
    open=opened,
    destroy=loops.destroy_store,
)
