"""The life of layers: opening a store, children, storms of them, removal, what a long life does."""

from __future__ import annotations

import os
import random
import statistics
import time

from cowshed.bench.meter import sync
from cowshed.bench.samples import Sample
from cowshed.bench.scenario import Scenario, Wrong
from cowshed.bench.scenarios.parallel import SyncedWrites, at_once
from cowshed.bench.trees import Recipe, digest
from cowshed.storage import api

TYPE_CHECKING = False
if TYPE_CHECKING:
    from cowshed.bench.stores import Store, Subject


def committed(it: Subject, recipe: Recipe, parent: api.Layer | None = None) -> api.Layer:
    layer = it.store.new(parent)
    with it.store.mount(layer) as root:
        recipe.write(root)
    return it.store.commit(layer)


class Open(Scenario):
    name, workloads, title = "open", ("W1",), "Open a store"
    text = "A store with many layers is opened, and every object in it is listed: what a command pays before it begins."
    quick = None
    full = {"layers": (10, 1000)}

    def round(self, it: Subject) -> None:
        store = it.driven
        for count in self.sizes["layers"]:
            have = len(it.layers)
            for n in range(have, count):
                it.layers[str(n)] = store.commit(store.new())
            store.close()
            row = self.row(f"{count}", f"opened and listed, {count} layers")
            with self.timed(it, row):
                store.open()
                found = sum(1 for one in store.driver.scan() if one.kind is api.ObjectKind.LAYER)
            if found < count:
                raise Wrong(f"{found} layers are listed, and there are {count}")


class Child(Scenario):
    name, workloads, title = "child", ("W2", "W3"), "A container's layer"
    text = (
        "A child of an image is created, mounted, unmounted and removed: what every container costs its driver, "
        "whatever runs in it. With images of more files, and of more layers on top of each other."
    )
    quick = {"files": (500,), "depths": (2, 10)}
    full = {"files": (100, 2000, 20_000), "depths": (2, 20, 100)}

    def plan(self) -> None:
        most, deep = max(self.sizes["files"]), min(self.sizes["depths"])
        self.grid = [(files, deep) for files in dict.fromkeys(self.sizes["files"])]
        self.grid += [(min(self.sizes["files"]), depth) for depth in self.sizes["depths"] if depth != deep]
        self._recipes = {files: Recipe().many("image", files - 1, 60) for files in {files for files, _ in self.grid}}
        self._largest = (most, deep)

    def setup(self, it: Subject) -> None:
        for files, depth in self.grid:
            if depth > (it.driven.capabilities.max_depth or depth):
                continue
            top = committed(it, self._recipes[files])
            for n in range(1, depth):
                more = Recipe()
                more.add(f"layer-{n}", 60, number=n)
                top = committed(it, more, top)
            it.layers[f"{files} {depth}"] = top
        it.settle()

    def round(self, it: Subject) -> None:
        store = it.driven
        for files, depth in self.grid:
            if f"{files} {depth}" not in it.layers:
                continue
            key, of = f"{files}-files-{depth}-layers", f"{files} files in {depth} layers"
            with self.timed(it, self.row(f"all/{key}", f"create, mount, unmount, remove: {of}", use=("containers",))):
                with self.timed(it, self.row(f"create/{key}", f"create: {of}")):
                    layer = store.new(it.layers[f"{files} {depth}"])
                with self.timed(it, self.row(f"mount/{key}", f"mount and unmount: {of}")), store.mount(layer) as root:
                    found = len(os.listdir(root))
                with self.timed(it, self.row(f"remove/{key}", f"remove, until it returns: {of}")):
                    store.remove(layer)
            if found != depth:
                raise Wrong(f"the child shows {found} entries, and its image has {depth}")
            store.purge()

    def verify(self, it: Subject) -> str:
        files, depth = self._largest
        layer = it.store.new(it.layers[f"{files} {depth}"])
        with it.store.mount(layer) as root:
            return digest(root)

    def expected(self) -> str:
        files, depth = self._largest
        whole = self._recipes[files].copy()
        for n in range(1, depth):
            whole.add(f"layer-{n}", 60, number=n)
        return whole.digest()


class Storm(Scenario):
    name, workloads, title = "storm", ("W14",), "Many containers at once"
    text = (
        "Several processes create, mount, unmount and remove children of one image at the same time: what a "
        "scheduler does to a host. The time of one child, and of the slowest twentieth."
    )
    quick = {"children": 12, "processes": (1, 4)}
    full = {"children": 100, "processes": (1, 10, 50)}

    def setup(self, it: Subject) -> None:
        it.layers["image"] = committed(it, Recipe().many("image", 200, 60))
        it.settle()

    def round(self, it: Subject) -> None:
        for processes in self.sizes["processes"]:
            each = max(1, self.sizes["children"] // processes)
            plans = [[it.driven.plan(it.layers["image"]) for _ in range(each)] for _ in range(processes)]
            row = self.row(f"child/{processes}", f"a child, {processes} at once", use=("containers",))
            with self.timed(it, row, of=each * processes):
                took = at_once([lambda plan=plan: _live(it.driven, plan) for plan in plans])  # type: ignore[misc]
            if processes > 1:
                slow = sorted(seconds / each for seconds in took)[-1 - len(took) // 20]
                title = f"a child, in the slowest twentieth of {processes} at once"
                self.record(it, self.row(f"slow/{processes}", title), Sample(slow * 1000))
            if left := it.driven.purge():
                raise Wrong(f"{left} objects are left")


def _live(store: Store, plans: list[api.Layer]) -> None:
    for plan in plans:
        layer = store.prepare(plan)
        with store.mount(layer) as root:
            if len(os.listdir(f"{root}/image/0")) != 200:
                raise Wrong("the child does not show its image")
        store.remove(layer)


class Removal(Scenario):
    name, workloads, title = "removal", ("W15",), "Remove"
    text = (
        "A layer of many files is removed: until the call returns, and until the space is back; in a full run once "
        "more with another process beside it that writes and syncs, which tells how much others feel of it. The "
        "bare file system: renaming the directory away, and removing its files."
    )
    control = True
    quick = {"files": 1000, "beside": False}
    full = {"files": 10_000, "beside": True}

    def round(self, it: Subject) -> None:
        files = self.sizes["files"]
        before = _settled(it)
        layer = self._layer(it)
        with self.timed(it, self.row("whole", f"{files} files, until the space is back", use=("containers", "builds"))):
            with self.timed(it, self.row("call", f"{files} files, until the call returns")):
                it.store.remove(layer)
            self._until_back(it, before)
        if self.sizes["beside"]:
            self._beside(it)

    def _layer(self, it: Subject) -> api.Layer:
        layer = it.store.new()
        with it.store.mount(layer) as root:
            Recipe().many("data", self.sizes["files"], 4096).write(root)
        sync(it.system.path)
        return layer

    def _until_back(self, it: Subject, before: int) -> None:
        until = time.monotonic() + 120
        while True:
            left = it.store.purge()
            if not left and it.system.used() - before <= max(self.sizes["files"] * 4096 // 20, 1 << 20):
                return
            if time.monotonic() > until:
                raise Wrong("the space is not back after two minutes")
            time.sleep(0.005)

    def _beside(self, it: Subject) -> None:
        path = f"{it.system.path}/beside"
        with open(path, "wb") as file:
            file.write(bytes(SyncedWrites.SIZE))
        before = _settled(it)
        layer = self._layer(it)
        with SyncedWrites(path) as writes:
            writes.begin()
            it.store.remove(layer)
            self._until_back(it, before)
        os.unlink(path)
        quiet = self.row("alone", "a synced write of another process, nothing removed")
        busy = self.row("beside", "a synced write of another process meanwhile", versus="alone")
        for row, found in ((quiet, writes.before), (busy, writes.during)):
            if found:
                self.record(it, row, Sample(statistics.median(found)))


def _settled(it: Subject) -> int:
    """Bytes in use, when they do not get fewer any more."""
    found = it.system.used()
    for _ in range(100):
        time.sleep(0.02)
        now = it.system.used()
        if now >= found:
            break
        found = now
    return found


class Aging(Scenario):
    name, workloads, title = "aging", ("W19",), "A long life"
    text = (
        "Many layers are created, written to and removed in random order, and then children and first writes are "
        "measured again: what a store of some months has become."
    )
    quick = None
    full = {"steps": 300}
    rounds, warm_up = 12, 0  # the second half of them after its life

    def plan(self) -> None:
        self._turns: dict[str, int] = {}
        self._image = Recipe().many("image", 500, 4096)
        self._image.add("large", 8 << 20)

    def setup(self, it: Subject) -> None:
        it.layers["image"] = committed(it, self._image)
        it.settle()

    def round(self, it: Subject) -> None:
        turn = self._turns[it.name] = self._turns.get(it.name, -1) + 1
        if turn == self.rounds // 2:
            self._live(it, random.Random(f"{self.seed} {turn}"))
        age = "fresh" if turn < self.rounds // 2 else "aged"
        for _ in range(2):
            self._measure(it, age)

    def verify(self, it: Subject) -> str:
        with it.driven.mount(it.layers["image"], read_only=True) as root:
            return digest(root)

    def expected(self) -> str:
        return self._image.digest()

    def _measure(self, it: Subject, age: str) -> None:
        with self.timed(it, self.row(f"child/{age}", f"a child, {age}", versus="child/fresh" * (age == "aged"))):
            layer = it.driven.new(it.layers["image"])
            with it.driven.mount(layer) as root:
                os.listdir(root)
        row = self.row(f"write/{age}", f"first write to a file of 8 MiB, {age}", versus="write/fresh" * (age == "aged"))
        with it.driven.mount(layer) as root, self.timed(it, row):
            write_at(f"{root}/large", 4 << 20)
        it.driven.remove(layer)
        it.settle()

    def _live(self, it: Subject, chance: random.Random) -> None:
        """The same life for every subject."""
        alive: list[api.Layer] = []
        for n in range(self.sizes["steps"]):
            if len(alive) > 20 or (alive and chance.random() < 0.4):
                it.driven.remove(alive.pop(chance.randrange(len(alive))))
                if n % 20 == 0:
                    it.driven.purge()
                continue
            layer = it.driven.new(it.layers["image"])
            with it.driven.mount(layer) as root:
                Recipe(n).many(f"step-{n}", chance.randrange(1, 100), chance.randrange(100, 20_000)).write(root)
            alive.append(it.driven.commit(layer) if chance.random() < 0.5 else layer)
        for layer in alive:
            it.driven.remove(layer)
        it.settle()


def write_at(path: str, offset: int) -> None:
    """4 KiB into a file that is there."""
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.pwrite(fd, b"\x5a" * 4096, offset)
    finally:
        os.close(fd)
