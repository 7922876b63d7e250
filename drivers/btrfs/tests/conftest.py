"""A btrfs of its own on a loop device, and stores on it."""

import os
from contextlib import nullcontext

import pytest

from cowshed.layers.host import EngineHost
from cowshed.layers.mounting import mounted
from cowshed.storage import api, options
from cowshed.storage.errors import LayerId
from cowshed_conformance.backing import file_system
from cowshed_driver_btrfs import ioctls, plugin


def pytest_collection_modifyitems(items):
    if os.geteuid() != 0:
        for item in items:
            if "place" in item.fixturenames:
                item.add_marker(pytest.mark.skip(reason="mounts file systems"))


@pytest.fixture
def place(tmp_path):
    """A directory in a subvolume of a btrfs, which is not its top."""
    with file_system("btrfs", str(tmp_path / "fs"), 256 << 20) as system:
        os.mkdir(f"{system.path}/host")
        yield f"{system.path}/host"


@pytest.fixture
def fd(place):
    """A descriptor to give ioctls."""
    opened = ioctls.directory(place)
    yield opened
    os.close(opened)


class Store:
    """One store, opened, and what an engine does with it."""

    def __init__(self, root, **given):
        self.root, self.host, self.options = root, EngineHost(), options.check(plugin, given)
        self.id = plugin.init(root, self.options, self.host)
        self.driver = self.open()
        self.number = 0

    def open(self):
        return plugin.open(self.root, self.options, self.host, store=self.id)

    def new(self, parent=None, size=None):
        self.number += 1
        layer = api.Layer(LayerId(f"{self.number:032x}"), self.number, api.Kind.ACTIVE, parent)
        self.driver.prepare(layer, api.LayerOptions(quota=api.Quota(bytes=size)))
        return layer

    def committed(self, layer):
        return api.Layer(layer.id, layer.number, api.Kind.COMMITTED, layer.parent)

    def commit(self, layer):
        self.driver.commit(layer, self.committed(layer), api.Durability.NONE)
        return self.committed(layer)

    def mounted(self, layer):
        return mounted(self.driver.mounts(layer, api.MountRequest(read_only=False)))

    def path(self, layer):
        """The subvolume."""
        return f"{self.root}/{layer.kind.value}/{layer.id}"

    def purge(self, budget=10):
        return self.driver.purge(lambda _: nullcontext(True), budget)

    def auxiliary(self):
        return [found.name for found in self.driver.scan() if found.kind is api.ObjectKind.AUXILIARY]

    def destroy(self):
        self.driver.close()
        plugin.destroy(self.root, self.options, self.host, store=self.id)


@pytest.fixture
def make(place):
    """make(name, option=…): stores that are gone after the test."""
    made = []

    def one(name="store", **given):
        made.append(Store(f"{place}/{name}", **given))
        return made[-1]

    yield one
    for store in made:
        store.driver.close()
        if os.path.exists(f"{store.root}/store"):
            plugin.destroy(store.root, store.options, store.host, store=store.id)
