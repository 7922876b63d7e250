"""A store of its own for a test of images, used as the commands use it, in the test's process."""

from __future__ import annotations

import os
from pathlib import Path

from cowshed.image import reference
from cowshed.image.load import load
from cowshed.image.progress import Progress
from cowshed.image.pull import pull
from cowshed.layers.driver import open_driver
from cowshed.layers.layers import Layers
from cowshed.state.store import open_store


class Told(Progress):
    """Remembers what it is told."""

    def __init__(self):
        self.steps, self.warnings = [], []

    def step(self, text):
        self.steps.append(text)

    def warn(self, text):
        self.warnings.append(text)


class Store:
    """A store of its own, used as the commands use it, in this process."""

    def __init__(self, folder, driver="overlay"):
        self.root, self.driver = f"{folder}/store", driver
        self.store = open_store(self.root, f"{folder}/run")
        self.layers = Layers(self.store, driver, open_driver(self.store, driver, {}))
        self.told = Told()
        self.registries = {}
        self.gate = None

    def close(self):
        self.layers.driver.close()
        self.store.close()

    def pull(self, name, **options):
        return pull(
            self.layers,
            reference.parse(name),
            registries=self.registries,
            durability="none",
            progress=self.told,
            gate=self.gate,
            **options,
        )

    def load(self, source, **options):
        return load(self.layers, source, durability="none", progress=self.told, **options)

    def query(self, text, *values):
        return self.store.query(text, *values)

    def contents(self):
        """All that is of images here: rows, files, what the driver holds, mounts."""
        files = [
            os.path.relpath(os.path.join(folder, name), self.root)
            for top in ("blobs", "drivers")
            for folder, folders, names in os.walk(f"{self.root}/{top}")
            for name in [*names, *folders]
        ]
        self.layers.purge(10)
        with open("/proc/self/mountinfo") as mounts:
            mounted = [line for line in mounts if self.root in line]
        rows = {
            table: sorted(map(repr, self.query(f"select * from {table}")))
            for table in ("images", "tags", "chains", "layers", "journal", "leases")
        }
        return sorted(f for f in files if "/trash" not in f), rows, mounted

    def tree(self, image):
        """Path -> content of the image's files (None for what is no plain file)."""
        with self.layers.mounted(self.layers.by_chain_id(image.chain_ids[-1]), read_only=True) as fd:
            top = Path(f"/proc/self/fd/{fd}")
            return {
                str(p.relative_to(top)): p.read_bytes() if p.is_file() and not p.is_symlink() else None
                for p in top.rglob("*")
            }
