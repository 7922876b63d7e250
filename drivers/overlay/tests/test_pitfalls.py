"""What has gone wrong with overlay for others, as far as no case of the conformance suite holds it."""

import os

import pytest

from cowshed.layers.host import EngineHost
from cowshed.layers.mounting import detached
from cowshed.storage import api, options
from cowshed.storage.errors import LayerId
from cowshed_driver_overlay import plugin

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="mounts")


@pytest.fixture
def driver(tmp_path):
    root, host, chosen = str(tmp_path / "store"), EngineHost(), options.check(plugin, {})
    opened = plugin.open(root, chosen, host, store=plugin.init(root, chosen, host))
    yield opened
    opened.close()


def active(driver, number, parent=None):
    layer = api.Layer(LayerId(f"{number:032x}"), number, api.Kind.ACTIVE, parent)
    driver.prepare(layer, api.LayerOptions())
    return layer


def committed(driver, number, parent=None):
    made = active(driver, number, parent)
    layer = api.Layer(made.id, number, api.Kind.COMMITTED, parent)
    driver.commit(made, layer, api.Durability.NONE)
    return layer


def test_no_default_of_the_kernel_decides_how_a_layer_is_written(driver):
    plan = driver.mounts(active(driver, 2, committed(driver, 1)), api.MountRequest(read_only=False))
    said = dict(plan.steps[-1].options)
    assert said == {"redirect_dir": "nofollow", "metacopy": "off", "index": "off", "xino": "off", "nfs_export": "off"}


def test_a_layer_that_is_twice_in_a_chain_is_mounted_once(driver):
    base, empty = committed(driver, 1), committed(driver, 2)
    chain = base
    for link in (empty, base, empty):
        chain = api.Layer(link.id, link.number, api.Kind.COMMITTED, chain)
    top = active(driver, 3, chain)
    plan = driver.mounts(top, api.MountRequest(read_only=False))
    assert len(plan.steps[-1].lowers) == 2
    os.close(detached(plan))  # ELOOP if the kernel gets one twice


def test_a_layer_that_was_mounted_without_syncs_is_not_taken_for_whole(driver):
    top = active(driver, 2, committed(driver, 1))
    os.close(detached(driver.mounts(top, api.MountRequest(read_only=False, volatile=True))))
    with pytest.raises(OSError, match="Invalid argument"):
        detached(driver.mounts(top, api.MountRequest(read_only=False)))
