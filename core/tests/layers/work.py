"""A command that works on layers, to be run as a process of its own: `python work.py ROOT DRIVER WHAT`."""

import os
import sys

from cowshed.layers.driver import open_driver
from cowshed.layers.layers import Layers
from cowshed.state import images, journal
from cowshed.state import layers as rows
from cowshed.state.rows import ImageRow
from cowshed.state.store import open_store
from cowshed.storage import api

DIFFS = tuple("sha256:" + letter * 64 for letter in "abc")


def opened(root, driver):
    store = open_store(root, root + ".run")
    return Layers(store, driver, open_driver(store, driver, {}))


def image_row(diffs=DIFFS, name="f"):
    return ImageRow(
        "sha256:" + name * 64, "sha256:" + "e" * 64, b"{}", "application/x", b"{}", diffs, images.chain_ids(diffs), (),
        "linux/amd64", 0, 0, 0,
    )  # fmt: skip


def pull(layers, diffs=DIFFS, name="f", durability="commit"):
    """Three layers, each with a file of its own, and their image."""
    image = image_row(diffs, name)
    top, made = None, []
    for chain, diff in zip(image.chain_ids, diffs, strict=True):
        there = layers.by_chain_id(chain)
        if there is not None:
            top = there
            continue
        active = layers.begin(top)
        with layers.mounted(active, read_only=False) as tree:
            fd = os.open(diff[7:9], os.O_WRONLY | os.O_CREAT, 0o644, dir_fd=tree)
            os.write(fd, chain.encode() * 1000)
            os.close(fd)
        top = layers.seal(active)
        made.append((top, chain, diff))
    layers.publish(made, durability, lambda tx: images.insert(tx, image))
    return image


def create(layers, image):
    """An active layer above the image, its byte held."""
    top = layers.by_chain_id(image.chain_ids[-1])
    with layers.store.transaction() as tx:
        active = layers.reserve(tx, top, "prepare")
    active = layers.prepare(active)
    with layers.store.transaction() as tx:
        layers.finish(tx, active)
    layers.store.locks.release("containers", active.number)
    return active


def remove(layers, layer):
    with layers.store.transaction() as tx:
        layers.intend_removal(tx, layer.number)
    layers.remove(layer)
    with layers.store.transaction() as tx:
        rows.delete(tx, layer.number)
    layers.store.locks.release("layers", layer.number)


def commit(layers, image):
    active = create(layers, image)
    new = layers.commit(active, chain_id="sha256:" + "9" * 64, diff_id="sha256:" + "8" * 64)
    assert new.kind is api.Kind.COMMITTED
    layers.store.locks.release("layers", active.number)


def rmi(layers, image):
    with layers.store.transaction() as tx:
        images.delete(tx, image.id)
    layers.remove_unreferenced()
    layers.purge(5)


def everything(layers):
    image = pull(layers)
    active = create(layers, image)
    remove(layers, active)
    commit(layers, image)
    rmi(layers, image)


def recover(layers):
    """As `cowshed.container.recovery`, for layers without containers."""
    store = layers.store
    for entry in journal.list_all(store):
        if not store.locks.try_take("layers", entry.number):
            continue
        if journal.get(store, entry.number) is not None and layers.repair(entry.number, entry.op):
            with store.transaction() as tx:
                rows.delete(tx, entry.number)
        store.locks.release("layers", entry.number)


def churn(layers, rounds):
    """Make and remove layers, purge in between: what many commands at once do."""
    image = pull(layers) if not layers.store.query("select 1 from images") else image_row()
    for n in range(int(rounds)):
        layer = create(layers, image)
        with layers.mounted(layer, read_only=False) as tree:
            os.close(os.open("mine", os.O_WRONLY | os.O_CREAT, 0o644, dir_fd=tree))
        if n % 2:
            layers.purge(1)
        with layers.mounted(layer, read_only=True) as tree:
            assert sorted(os.listdir(f"/proc/self/fd/{tree}")) == ["aa", "bb", "cc", "mine"]
        remove(layers, layer)
        layers.purge(1)


def purge(layers):
    layers.purge(60)


if __name__ == "__main__":
    it = opened(sys.argv[1], sys.argv[2])
    globals()[sys.argv[3]](it, *sys.argv[4:])
    it.store.close()
