"""What images cost: unpacking their layers, building them step by step, finding what changed, exporting, committing."""

from __future__ import annotations

import contextlib
import hashlib
import os

from cowshed.bench.samples import Sample
from cowshed.bench.scenario import Scenario, Wrong
from cowshed.bench.scenarios.life import committed
from cowshed.bench.scenarios.parallel import at_once
from cowshed.bench.trees import Recipe, digest
from cowshed.layers import archive, changes
from cowshed.layers.apply import apply
from cowshed.layers.digest import WHOLE
from cowshed.layers.replay import Writing, replay
from cowshed.storage.kit.trees import remove_tree

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from cowshed.bench.stores import Store, Subject
    from cowshed.storage import api

_CHUNK = 1 << 20


def _chunks(data: bytes) -> Iterator[bytes]:
    return (data[at : at + _CHUNK] for at in range(0, len(data), _CHUNK))


def _unpacked(it: Subject, data: bytes) -> api.Layer:
    layer = it.store.new()
    with it.store.tree(layer) as root:
        apply(_chunks(data), root)
    return layer


class Unpack(Scenario):
    name, workloads, title = "unpack", ("W4",), "Unpack a layer"
    text = (
        "Archives are unpacked into a layer by the engine and committed so that they survive a power cut, as a pull "
        "does behind its network: many small files, and one large."
    )
    control = True
    quick = {"files": 1000, "bytes": 16 << 20}
    full = {"files": 10_000, "bytes": 256 << 20}

    def plan(self) -> None:
        self._small = Recipe().many("small", self.sizes["files"], 4096)
        large = Recipe()
        large.add("large", self.sizes["bytes"])
        self._archives = {
            "small": (f"{self.sizes['files']} files of 4 KiB", self._small.archive()),
            "large": (f"a file of {self.sizes['bytes'] >> 20} MiB", large.archive()),
        }

    def round(self, it: Subject) -> None:
        for key, (title, data) in self._archives.items():
            row = self.row(key, f"{title}, unpacked and durable", use=("images", "builds"))
            with self.timed(it, row, device=True):
                layer = it.store.commit(_unpacked(it, data), durable=True)
            it.store.remove(layer)
            it.settle()

    def verify(self, it: Subject) -> str:
        with it.store.mount(_unpacked(it, self._archives["small"][1])) as root:
            return digest(root)

    def expected(self) -> str:
        return self._small.digest()


class UnpackAtOnce(Scenario):
    name, workloads, title = "unpack-at-once", ("W5",), "Unpack layers at once"
    text = "The same archive is unpacked into several layers by as many processes: can a pull do layers in parallel."
    quick = None
    full = {"files": 2000, "processes": (1, 2, 4)}

    def plan(self) -> None:
        self._data = Recipe().many("small", self.sizes["files"], 4096).archive()

    def round(self, it: Subject) -> None:
        for processes in self.sizes["processes"]:
            plans = [it.driven.plan() for _ in range(processes)]
            row = self.row(
                f"{processes}", f"a layer of {self.sizes['files']} files, {processes} at once", use=("images",)
            )
            with self.timed(it, row, of=processes):
                at_once([lambda plan=plan: self._unpack(it.driven, plan) for plan in plans])  # type: ignore[misc]
            for plan in plans:
                it.driven.remove(plan)
            it.settle()

    def _unpack(self, store: Store, plan: api.Layer) -> None:
        layer = store.prepare(plan)
        with store.tree(layer) as root:
            apply(_chunks(self._data), root)
        with store.mount(layer, read_only=True) as path:
            found = sum(len(names) for _, _, names in os.walk(path))
        if found != self.sizes["files"]:
            raise Wrong(f"the layer has {found} files, and its archive {self.sizes['files']}")


class Build(Scenario):
    name, workloads, title = "build", ("W10",), "Build an image in steps"
    text = (
        "Each step is a child of the one before: new files, changes of files of the base, a commit. A build does "
        "this for every instruction; what a driver does with the whole tree at each of them is paid every time. The "
        "bare file system does the same writes in one directory."
    )
    control = True
    quick = {"files": 1000, "steps": 4}
    full = {"files": 10_000, "steps": 8}

    def plan(self) -> None:
        self._base = Recipe().many("base", self.sizes["files"], 1024)
        self._steps = []
        names = list(self._base.files)
        for n in range(self.sizes["steps"]):
            step = Recipe().many(f"step-{n}", 20, 4096)
            for i in range(5):
                step.add(names[(n * 5 + i) * 7 % len(names)], 2048, number=1000 + n)
            self._steps.append(step)

    def setup(self, it: Subject) -> None:
        it.layers["base"] = committed(it, self._base)
        it.settle()

    def round(self, it: Subject) -> None:
        made = []
        row = self.row("step", f"a step, of {len(self._steps)} on {self.sizes['files']} files", use=("builds",))
        with self.timed(it, row, device=True, of=len(self._steps)):
            top = it.layers["base"]
            for step in self._steps:
                top = committed(it, step, top)
                made.append(top)
        for layer in reversed(made):
            it.store.remove(layer)
        it.settle()

    def verify(self, it: Subject) -> str:
        top = it.layers["base"]
        for step in self._steps:
            top = committed(it, step, top)
        with it.store.mount(top, read_only=True) as root:
            return digest(root)

    def expected(self) -> str:
        whole = self._base.copy()
        for step in self._steps:
            whole.files.update(step.files)
        return whole.digest()


class Changes(Scenario):
    name, workloads, title = "changes", ("W11",), "Find what changed"
    text = (
        "40 changed files in a large tree are found in the driver's own way (what it can list, its upper directory, "
        "else the walk), and by a walk of both trees; in a full run again with cold caches. `diff` and `commit` of a "
        "container wait for it. Both must find the same."
    )
    quick = {"files": 2000, "cold": False}
    full = {"files": 50_000, "cold": True}

    def plan(self) -> None:
        self._recipe = Recipe().many("tree", max(400, self.sizes["files"]), 60)

    def setup(self, it: Subject) -> None:
        base = it.layers["base"] = committed(it, self._recipe)
        top = it.store.new(base)
        with it.store.mount(top) as root:
            _change_forty(f"{root}/tree")
        it.layers["top"] = it.store.commit(top)
        it.settle()

    def round(self, it: Subject) -> None:
        of = f"40 changes in {len(self._recipe.files)} files"
        found = [
            self._find(it, "driver", f"{of}, the driver's way", versus="walk", use=("builds", "images")),
            self._find(it, "walk", f"{of}, a walk of both trees"),
        ]
        if self.sizes["cold"]:
            it.cold()
            found.append(self._find(it, "cold", f"{of}, the driver's way, cold", versus="driver"))
        if any(one != found[1] for one in found):
            raise Wrong(f"{len(found[0])} changes are found, and {len(found[1])} by the walk")

    def _find(
        self, it: Subject, key: str, title: str, *, versus: str = "", use: tuple[str, ...] = ()
    ) -> list[tuple[bytes, str]]:
        base, top, store = it.layers["base"], it.layers["top"], it.driven
        row = self.row(key, title, versus=versus, use=use)
        with store.tree(base, read_only=True) as lower, store.tree(top, read_only=True) as upper:
            with self.timed(it, row, device=key == "cold"):
                walk = key == "walk"
                found = changes.of_trees(lower, upper) if walk else store.changes(base, top, lower, upper)
            return [(change.path, change.kind.value) for change in found.changes]


def _change_forty(place: str) -> None:
    """Ten each of: appended to, removed, new, other mode."""
    folders = sorted(os.listdir(place), key=int)
    for n in range(10):
        folder = f"{place}/{folders[n * len(folders) // 10]}"
        names = sorted((name for name in os.listdir(folder) if name.isdigit()), key=int)
        with open(f"{folder}/{names[2 * n]}", "ab") as file:
            file.write(b"+")
        os.chmod(f"{folder}/{names[2 * n + 1]}", 0o600)
        os.unlink(f"{folder}/{names[-1]}")
        with open(f"{folder}/new-{n}", "wb") as file:
            file.write(b"new")


class Export(Scenario):
    name, workloads, title = "export", ("W12",), "Export a layer"
    text = "The archive of a layer is made and its digest taken, caches cold: what a push or a save reads."
    quick = None
    full = {"files": 10_000}

    def setup(self, it: Subject) -> None:
        recipe = Recipe().many("data", self.sizes["files"], 16 << 10)
        it.layers["base"] = committed(it, Recipe().many("base", 10, 60))
        it.layers["top"] = committed(it, recipe, it.layers["base"])
        it.settle()

    def round(self, it: Subject) -> None:
        base, top, store = it.layers["base"], it.layers["top"], it.driven
        it.cold()
        row = self.row("archive", f"{self.sizes['files']} files of 16 KiB, cold", use=("images",))
        with (
            store.tree(base, read_only=True) as lower, store.tree(top, read_only=True) as upper,
            self.timed(it, row, device=True),
        ):  # fmt: skip
            found = store.changes(base, top, lower, upper)
            whole = hashlib.sha256()
            size = 0
            for piece in archive.stream(found, upper, clamp=0):
                whole.update(piece)
                size += len(piece)
        if size < self.sizes["files"] << 14:
            raise Wrong(f"the archive has {size} bytes only")
        it.digest = whole.hexdigest()

    def verify(self, it: Subject) -> str:
        return it.digest


class Commit(Scenario):
    name, workloads, title = "commit", ("W20",), "Commit, durable"
    text = (
        "A layer with new files is committed, so that it survives a power cut when the call returns, and without "
        "that promise. The bare file system syncs the same files. (Whether the promise is kept is what case X03 of "
        "the conformance suite is for.)"
    )
    control = True
    quick = {"files": 500}
    full = {"files": 1000}

    def round(self, it: Subject) -> None:
        files = self.sizes["files"]
        for durable in (True, False):
            if it.bare and not durable:
                continue
            layer = it.store.new()
            with it.store.mount(layer) as root:
                Recipe().many("data", files, 4096).write(root)
            key, title = ("durable", "durable") if durable else ("not", "without that promise")
            use = ("builds", "images") if durable else ()
            row = self.row(key, f"{files} new files, {title}", versus="" if durable else "durable", use=use)
            with self.timed(it, row, device=True):
                layer = it.store.commit(layer, durable=durable)
            it.store.remove(layer)
            it.settle()

    def verify(self, it: Subject) -> str:
        layer = it.store.new()
        with it.store.mount(layer) as root:
            Recipe().many("data", self.sizes["files"], 4096).write(root)
        layer = it.store.commit(layer, durable=True)
        with it.store.mount(layer, read_only=True) as root:
            return digest(root)

    def expected(self) -> str:
        return Recipe().many("data", self.sizes["files"], 4096).digest()


class Convert(Scenario):
    name, workloads, title = "convert", ("W21",), "Move to another driver and back"
    text = (
        "An image of two layers is read from its mount and made as plain directories beside it, and made from those "
        "in new layers of the driver: the work of `storage convert` on either side, with no archive between. Where "
        "the file system can share what is in files between trees, little is written."
    )
    quick = {"files": 500, "bytes": 8 << 20}
    full = {"files": 5000, "bytes": 256 << 20}

    def plan(self) -> None:
        self._base = Recipe().many("base", self.sizes["files"], 4096)
        self._base.add("large", self.sizes["bytes"])
        self._top = Recipe().many("top", self.sizes["files"] // 10, 4096)

    def setup(self, it: Subject) -> None:
        it.layers["base"] = committed(it, self._base)
        it.layers["top"] = committed(it, self._top, it.layers["base"])
        it.settle()

    def round(self, it: Subject) -> None:
        place = f"{it.system.path}/plain"
        os.mkdir(place)
        of = f"{self.sizes['files']} files and one of {self.sizes['bytes'] >> 20} MiB"
        try:
            free = it.system.used()
            with self.timed(it, self.row("from", f"from the driver: {of}", use=("images",)), device=True):
                self._out(it, place)
            self.record(it, self.row("space/from", "space that the directories take", "bytes"), _grown(it, free))
            free = it.system.used()
            with self.timed(it, self.row("to", f"to the driver: {of}", use=("images",)), device=True):
                made = self._in(it, place)
            self.record(it, self.row("space/to", "space that the layers take", "bytes"), _grown(it, free))
            with it.driven.mount(made[-1], read_only=True) as root:
                it.digest = digest(root)
        finally:
            remove_tree(place)
        for layer in reversed(made):
            it.store.remove(layer)
        it.settle()

    def _out(self, it: Subject, place: str) -> None:
        base, top, store = it.layers["base"], it.layers["top"], it.driven
        os.mkdir(f"{place}/base")
        os.mkdir(f"{place}/top")
        with store.tree(base, read_only=True) as lower, store.tree(top, read_only=True) as upper:
            for name, root, found in (
                ("base", lower, changes.of_trees(None, lower)), ("top", upper, store.changes(base, top, lower, upper)),
            ):  # fmt: skip
                with _directory(f"{place}/{name}") as target:
                    replay(found, root, target, mask=WHOLE)

    def _in(self, it: Subject, place: str) -> list[api.Layer]:
        store, made = it.driven, []
        parent = None
        for name in ("base", "top"):
            layer = store.new(parent)
            with (
                _directory(f"{place}/{name}") as root,
                Writing(store.driver, layer, store.tree(layer)) as (target, whiteouts),
            ):
                replay(changes.of_trees(None, root), root, target, mask=WHOLE, whiteouts=whiteouts)
            parent = store.commit(layer)
            made.append(parent)
        return made

    def verify(self, it: Subject) -> str:
        return it.digest

    def expected(self) -> str:
        whole = self._base.copy()
        whole.files.update(self._top.files)
        return whole.digest()


@contextlib.contextmanager
def _directory(path: str) -> Iterator[int]:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield fd
    finally:
        os.close(fd)


def _grown(it: Subject, before: int) -> Sample:
    return Sample(max(0, it.system.used() - before))
