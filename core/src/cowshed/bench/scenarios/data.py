"""What programs in containers feel: first writes, databases, small files, look-ups through layers, shared memory."""

from __future__ import annotations

import contextlib
import os
import sqlite3
import statistics
import time

from cowshed.bench.samples import Sample
from cowshed.bench.scenario import Scenario, Wrong
from cowshed.bench.scenarios.life import committed, write_at
from cowshed.bench.trees import Recipe, digest

TYPE_CHECKING = False
if TYPE_CHECKING:
    from cowshed.bench.stores import Subject

_BLOCK = 4096


class CopyUp(Scenario):
    name, workloads, title = "copy-up", ("W6",), "First write to a file of the image"
    text = (
        "4 KiB are written into the middle of a file that comes with the image, and then once more: what is copied "
        "at the first write is the file for some drivers, a block for others. Bytes are those that reached the "
        "device."
    )
    control = True
    quick = {"bytes": (4 << 10, 1 << 20, 32 << 20)}
    full = {"bytes": (4 << 10, 1 << 20, 64 << 20, 1 << 30)}

    def plan(self) -> None:
        self._recipe = Recipe()
        for size in self.sizes["bytes"]:
            self._recipe.add(f"file-{size}", size)

    def setup(self, it: Subject) -> None:
        it.layers["image"] = committed(it, self._recipe)
        it.settle()

    def round(self, it: Subject) -> None:
        for size in self.sizes["bytes"]:
            layer = it.store.new(it.layers["image"])
            it.settle()
            first = self.row(
                f"first/{size}", f"first write, {_size(size)}", use=("databases",) if size > 1 << 20 else ()
            )
            second = self.row(f"second/{size}", f"second write, {_size(size)}")
            with it.store.mount(layer) as root:
                path, at = f"{root}/file-{size}", size // 2 // _BLOCK * _BLOCK
                with self.timed(it, first, device=True):
                    write_at(path, at)
                with self.timed(it, second):
                    write_at(path, at)
                with open(path, "rb") as file:
                    file.seek(at)
                    if file.read(_BLOCK) != b"\x5a" * _BLOCK:
                        raise Wrong("what was written is not read")
            it.store.remove(layer)

    def verify(self, it: Subject) -> str:
        layer = it.store.new(it.layers["image"])
        with it.store.mount(layer) as root:
            for size in self.sizes["bytes"]:
                write_at(f"{root}/file-{size}", size // 2 // _BLOCK * _BLOCK)
            return digest(root)


def _size(size: int) -> str:
    for unit, shift in (("GiB", 30), ("MiB", 20), ("KiB", 10)):
        if size >= 1 << shift:
            return f"{size >> shift} {unit}"
    return f"{size} B"


class Database(Scenario):
    name, workloads, title = "database", ("W7",), "A database"
    text = (
        "SQLite with a write-ahead log, each transaction synced; and 4 KiB at random places of a file, each synced "
        "(median, and 99 of 100 below). Both files are the container's own."
    )
    control = True
    quick = {"transactions": 20, "writes": 40, "bytes": 16 << 20}
    full = {"transactions": 200, "writes": 400, "bytes": 256 << 20}

    def setup(self, it: Subject) -> None:
        layer = it.layers["own"] = it.store.new(committed(it, Recipe().many("image", 10, 60)))
        recipe = Recipe()
        recipe.add("random", self.sizes["bytes"])
        with it.store.mount(layer) as root:
            recipe.write(root)
        it.settle()

    def round(self, it: Subject) -> None:
        with it.store.attached(it.layers["own"]) as root:
            self._transactions(it, f"{root}/database")
            self._writes(it, f"{root}/random")

    def verify(self, it: Subject) -> str:
        with it.store.attached(it.layers["own"]) as root:
            connection = sqlite3.connect(f"file:{root}/database?mode=ro", uri=True)
            try:
                (rows,) = connection.execute("select count(*) from log").fetchone()
                (sound,) = connection.execute("pragma integrity_check").fetchone()
            finally:
                connection.close()
        return f"{rows} rows, {sound}"

    def _transactions(self, it: Subject, path: str) -> None:
        count = self.sizes["transactions"]
        connection = sqlite3.connect(path, isolation_level=None)
        try:
            connection.execute("pragma journal_mode=wal")
            connection.execute("pragma synchronous=full")
            connection.execute("create table if not exists log (number integer primary key, text text)")
            (before,) = connection.execute("select count(*) from log").fetchone()
            row = self.row("transaction", "a transaction of SQLite", use=("databases",))
            with self.timed(it, row, device=True, of=count):
                for n in range(count):
                    connection.execute("insert into log (text) values (?)", (f"{n:0100}",))
            (after,) = connection.execute("select count(*) from log").fetchone()
        finally:
            connection.close()
        if after - before != count:
            raise Wrong(f"{after - before} of {count} transactions are there")

    def _writes(self, it: Subject, path: str) -> None:
        took = []
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        try:
            for _ in range(self.sizes["writes"]):
                at = self.chance.randrange(self.sizes["bytes"] // _BLOCK) * _BLOCK
                began = time.perf_counter()
                os.pwrite(fd, b"\x5a" * _BLOCK, at)
                os.fdatasync(fd)
                took.append((time.perf_counter() - began) * 1000)
        finally:
            os.close(fd)
        self.record(
            it, self.row("write", "4 KiB at random, synced", use=("databases",)), Sample(statistics.median(took))
        )
        worst = statistics.quantiles(took, n=100, method="inclusive")[98]
        self.record(it, self.row("write-99", "4 KiB at random, synced, 99 of 100 below"), Sample(worst))


class Metadata(Scenario):
    name, workloads, title = "metadata", ("W8",), "Many small files"
    text = (
        "In a child of an image: files are created, looked at, looked for in vain, listed, renamed and unlinked, as "
        "compilers and package managers do. Times are of one file."
    )
    control = True
    quick = {"files": 500}
    full = {"files": 5000}

    def setup(self, it: Subject) -> None:
        image = Recipe().many("image", 1000, 60)
        it.layers["own"] = it.store.new(committed(it, image))
        it.settle()

    def round(self, it: Subject) -> None:
        count, use = self.sizes["files"], ("builds",)
        with it.store.mount(it.layers["own"]) as root:
            place = f"{root}/image/0/new"
            os.mkdir(place)
            names = [f"{place}/{n}" for n in range(count)]
            with self.timed(it, self.row("create", "create a file of 100 bytes", use=use), of=count):
                for name in names:
                    fd = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o644)
                    os.write(fd, b"x" * 100)
                    os.close(fd)
            with self.timed(it, self.row("stat", "stat", use=use), of=count):
                found = sum(os.stat(name).st_size for name in names)
            if found != 100 * count:
                raise Wrong(f"the files have {found} bytes")
            with self.timed(it, self.row("absent", "look for a name that is not there", use=use), of=count):
                for name in names:
                    if os.path.lexists(f"{name}.absent"):
                        raise Wrong("a file is there that nobody made")
            with self.timed(it, self.row("list", "list"), of=count):
                listed = len(os.listdir(place))
            if listed != count:
                raise Wrong(f"{listed} of {count} files are listed")
            with self.timed(it, self.row("rename", "rename", use=use), of=count):
                for name in names:
                    os.rename(name, f"{name}.o")
            with self.timed(it, self.row("unlink", "unlink", use=use), of=count):
                for name in names:
                    os.unlink(f"{name}.o")
            os.rmdir(place)

    def verify(self, it: Subject) -> str:
        with it.store.mount(it.layers["own"]) as root:
            return digest(root)

    def expected(self) -> str:
        return Recipe().many("image", 1000, 60).digest()


class Lookup(Scenario):
    name, workloads, title = "lookup", ("W9",), "Look up through layers"
    text = (
        "Files of the lowest layer are looked at for the first time after a mount, below more and more layers: a "
        "name that is in none of the upper ones has to be looked for in each of them. Times are of one file."
    )
    quick = {"depths": (2, 40), "count": 200}
    full = {"depths": (2, 20, 100, 200), "count": 200}

    def plan(self) -> None:
        self._base = Recipe().many("base", self.sizes["count"], 60)

    def setup(self, it: Subject) -> None:
        top, depth = committed(it, self._base), 1
        for wanted in self.sizes["depths"]:
            if wanted > (it.driven.capabilities.max_depth or wanted):
                break
            while depth < wanted:
                more = Recipe()
                more.add(f"base/0/layer-{depth}", 60)
                top = committed(it, more, top)
                depth += 1
            it.layers[str(wanted)] = top
        it.settle()

    def round(self, it: Subject) -> None:
        for depth in self.sizes["depths"]:
            if str(depth) not in it.layers:
                continue
            row = self.row(f"{depth}", f"first look, below {depth} layers", use=("builds",))
            layer = it.driven.new(it.layers[str(depth)])
            with it.driven.mount(layer) as root:
                names = [f"{root}/{name}" for name in self._base.files]
                with self.timed(it, row, of=len(names)):
                    found = sum(os.stat(name).st_size for name in names)
            if found != 60 * len(names):
                raise Wrong(f"the files have {found} bytes")
            it.driven.remove(layer)
        it.driven.purge()


class Density(Scenario):
    name, workloads, title = "density", ("W13",), "Many containers of one image"
    text = (
        "Several children of one image are mounted together and each reads all of it, caches cold: where the page "
        "cache is shared, the bytes come from the device once; where it is not, once for each, and they fill memory "
        "as often."
    )
    quick = {"containers": 4, "bytes": 8 << 20}
    full = {"containers": 10, "bytes": 100 << 20}

    def setup(self, it: Subject) -> None:
        recipe = Recipe()
        for n in range(self.sizes["bytes"] >> 20):
            recipe.add(f"data/{n}", 1 << 20)
        it.layers["image"] = committed(it, recipe)
        it.settle()

    def round(self, it: Subject) -> None:
        count, size = self.sizes["containers"], self.sizes["bytes"] >> 20
        layers = [it.driven.new(it.layers["image"]) for _ in range(count)]
        it.cold()
        row = self.row("time", f"{count} containers read {size} MiB each, cold", use=("containers",))
        with contextlib.ExitStack() as mounted, self.timed(it, row, device=True):
            for root in [mounted.enter_context(it.driven.mount(layer)) for layer in layers]:
                _read_all(f"{root}/data", size)
        sample = row.samples[it.name][-1]
        if sample.read is not None:
            read = self.row("read", f"bytes read from the device, {count} × {size} MiB", "bytes", use=("containers",))
            self.record(it, read, Sample(float(sample.read)))
        for layer in layers:
            it.driven.remove(layer)
        it.settle()


def _read_all(folder: str, size: int) -> None:
    found = 0
    for name in os.listdir(folder):
        with open(f"{folder}/{name}", "rb", buffering=0) as file:
            while piece := file.read(1 << 20):
                found += len(piece)
    if found != size << 20:
        raise Wrong(f"{found} bytes are read of {size} MiB")
