"""A btrfs of its own on a loop device, and stores on it."""

import os
from contextlib import nullcontext

import pytest

from cowshed.layers.host import EngineHost
from cowshed.layers.mounting import mounted
from cowshed.storage import api, options
from cowshed.storage.errors import LayerId
from cowshed_conformance.backing import file_system
from cowshed_driver_btrfs import ioctls, plugin, quota, subvolumes


def pytest_collection_modifyitems(items):
    if os.geteuid() != 0:
        for item in items:
            if "place" in item.fixturenames:
                item.add_marker(pytest.mark.skip(reason="mounts file systems"))


@pytest.fixture(scope="module")
def system(tmp_path_factory):
    with file_system("btrfs", str(tmp_path_factory.mktemp("btrfs") / "fs"), 512 << 20) as made:
        yield made


@pytest.fixture
def place(system, request):
    """A directory in a btrfs, which is not its top. What is left there goes."""
    path = f"{system.path}/{len(os.listdir(system.path))}-{request.node.name[:20]}"
    os.mkdir(path)
    yield path
    for name in os.listdir(path):
        subvolumes.remove(f"{path}/{name}")


@pytest.fixture
def simple_quotas(place):
    if not quota.kernel_has_simple():  # which is known when the module is loaded
        pytest.skip("simple quotas need Linux 6.7")


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
