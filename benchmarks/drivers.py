"""Times what storage drivers do, each on a fresh file system of one size, as ratios in one run: `make bench-drivers`.

README.md tells the method. Needs root, and the conformance suite installed, whose file systems and stores it uses.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import table

from cowshed.layers import changes
from cowshed.storage import api, registry
from cowshed.storage.errors import StorageError
from cowshed.storage.kit.trees import remove_tree
from cowshed_conformance import backing, hoststate
from cowshed_conformance.harness import Store, SuiteHost, mine, sync
from cowshed_conformance.target import Target, resolve

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

KINDS = ("ext4-quota", "ext4", "xfs-quota", "btrfs", "zpool")  # in the order in which a driver's probe is asked
BASE = "overlay"  # what the others are compared with
GROUPS = ("child", "changes", "quota", "commit", "removal")
MIB = 1 << 20
_PIECE = 16 << 10


@dataclass
class Subject:
    """A driver on a file system of its own."""

    name: str
    target: Target
    system: backing.FileSystem
    store: Store
    facts: dict[str, Any]
    layers: dict[str, api.Layer] = field(default_factory=dict)


@dataclass
class Sample:
    wall: float  # ms
    cpu: float  # ms, of this process and its children; what kernel threads do is not in it
    written: int | None = None  # bytes that reached the loop device


class Failed(Exception):
    """A driver that is quick and wrong is no comparison."""


class Bench:
    def __init__(self, subjects: list[Subject], plain: str, said: argparse.Namespace) -> None:
        self.subjects, self.plain, self.said = subjects, plain, said
        self.chance = random.Random(said.seed)
        self.samples: dict[str, dict[str, list[Sample]]] = {}
        self.failures: list[str] = []
        self.began = time.monotonic()

    # ------------------------------------------------------------ helpers

    def count(self, number: int) -> int:
        return max(10, round(number * self.said.scale))

    def record(self, row: str, subject: str, sample: Sample) -> None:
        self.samples.setdefault(row, {}).setdefault(subject, []).append(sample)

    @contextlib.contextmanager
    def timed(self, row: str, subject: str, system: backing.FileSystem | None = None, *, of: int = 1) -> Iterator[None]:
        """Record what the block takes, divided by how many operations it has."""
        device = _device(system)
        before, used, began = _written(device), _cpu(), time.perf_counter()
        yield
        wall, cpu = time.perf_counter() - began, _cpu() - used
        written = None if device is None else (_written(device) or 0) - (before or 0)
        self.record(row, subject, Sample(wall * 1000 / of, cpu * 1000 / of, written))

    def rounds(self, number: int, step: Callable[[Subject], None]) -> None:
        """Every driver in each round, in random order; the first round is not counted. One that fails is left out."""
        alive = list(self.subjects)
        for n in range(max(1, round(number * self.said.rounds)) + 1):
            self.chance.shuffle(alive)
            for subject in list(alive):
                try:
                    step(subject)
                except (StorageError, OSError, Failed) as error:
                    alive.remove(subject)
                    self.failures.append(f"{step.__name__}, {subject.name}: {' '.join(str(error).split())}")
            if n == 0:
                self.drop(step.__name__)
        print(f"{time.monotonic() - self.began:5.0f} s  {step.__name__}", file=sys.stderr, flush=True)

    def drop(self, group: str) -> None:
        for row, found in self.samples.items():
            if row.startswith(f"{group}:"):
                found.clear()

    def each(self, step: Callable[[Subject], None]) -> None:
        for subject in self.subjects:
            step(subject)

    # ------------------------------------------------------------ groups

    def child(self) -> None:
        """What a container costs its driver: a child of an image, mounted, unmounted, removed."""
        files = self.count(2000)

        def image(it: Subject) -> None:
            first = grown(it.store, None, files)
            it.layers["image"] = grown(it.store, first, 20)
            it.store.purge_all()

        self.each(image)

        def child(it: Subject) -> None:
            with self.timed("child: create, mount, unmount, remove", it.name):
                layer = it.store.new(it.layers["image"])
                with it.store.mount(layer) as root:
                    found = len(os.listdir(root))
                it.store.driver.remove(layer)
            if found < 2:
                raise Failed(f"the child shows {found} entries")
            it.store.purge_all()

        self.rounds(30, child)

    def changes(self) -> None:
        """What 40 changed files in a large tree are found in, and by the walk of both trees."""
        files = max(400, self.count(200_000))

        def large(it: Subject) -> None:
            base = grown(it.store, None, files)
            top = it.store.new(base)
            with it.store.mount(top) as root:
                change_forty(root)
            it.layers.update(base=base, top=it.store.commit(top))
            sync(it.system.path)
            print(f"{time.monotonic() - self.began:5.0f} s  {files} files, {it.name}", file=sys.stderr, flush=True)

        self.each(large)

        def changes_(it: Subject) -> None:
            base, top = it.layers["base"], it.layers["top"]
            with it.store.tree(base, read_only=True) as lower, it.store.tree(top, read_only=True) as upper:
                with self.timed("changes: as the driver finds them", it.name):
                    quick = found_by_driver(it.store, base, top, lower, upper)
                with self.timed("changes: walk of both trees", it.name):
                    walked = changes.of_trees(lower, upper)
            if said(quick) != said(walked):
                raise Failed(f"{len(said(quick))} changes, and {len(said(walked))} by the walk")

        changes_.__name__ = "changes"
        self.rounds(5, changes_)
        for it in self.subjects:
            for layer in (it.layers.pop("top"), it.layers.pop("base")):
                it.store.driver.remove(layer)
            it.store.purge_all()

    def quota(self) -> None:
        """What writing costs with a limit that is never reached, and without."""
        files = self.count(2000)

        def quota(it: Subject) -> None:
            able = it.store.capabilities.quota is not api.QuotaScope.NONE
            limits = [False, True] if able else [False]
            self.chance.shuffle(limits)
            for limited in limits:
                limit = api.Quota(bytes=1 << 40) if limited else api.Quota()
                layer = it.store.prepare(it.store.plan(), api.LayerOptions(quota=limit))
                with it.store.mount(layer) as root:
                    row = (
                        f"quota: {files} files of 16 KiB written and synced, {'with' if limited else 'without'} a limit"
                    )
                    with self.timed(row, it.name, it.system):
                        fill(root, files, _PIECE)
                        sync(root)
                it.store.driver.remove(layer)
                it.store.purge_all()
                sync(it.system.path)

        self.rounds(8, quota)

    def commit(self) -> None:
        """Until 1,000 new files are durable, and on the bare file system."""
        files = self.count(1000)

        def commit(it: Subject) -> None:
            parent = it.layers.get("image")
            layer = it.store.new(parent)
            with it.store.mount(layer) as root:
                fill(root, files, 4096)
            with self.timed(f"commit: {files} new files, durable", it.name, it.system):
                layer = it.store.commit(layer, None, api.Durability.COMMIT)
            it.store.driver.remove(layer)
            it.store.purge_all()
            place = f"{it.system.path}/plain"
            os.mkdir(place)
            sync(it.system.path)
            fill(place, files, 4096)
            with self.timed("commit: the same on the bare file system", it.name, it.system):
                sync(place)
            remove_tree(place)
            sync(it.system.path)

        self.rounds(12, commit)

    def removal(self) -> None:
        """Until remove() returns, and until the space is back; and rm -r on the bare file system."""
        files = self.count(10_000)

        def removal(it: Subject) -> None:
            before = settled(it.system)
            layer = it.store.new()
            with it.store.mount(layer) as root:
                fill(root, files, 4096)
            sync(it.system.path)
            with self.timed(f"removal: of {files} files, until the call returns", it.name):
                it.store.driver.remove(layer)
            until = time.monotonic() + 120
            with self.timed("removal: from then until the space is back", it.name):
                while True:
                    left = it.store.driver.purge(mine, 60).objects_left
                    sync(it.system.path)
                    if not left and it.system.used() - before <= max(files * 4096 // 20, MIB):
                        break
                    if time.monotonic() > until:
                        raise Failed("the space is not back after two minutes")
                    time.sleep(0.005)
            place = f"{it.system.path}/plain"
            os.mkdir(place)
            fill(place, files, 4096)
            sync(it.system.path)
            with self.timed("removal: rm -r and sync on the bare file system", it.name):
                remove_tree(place)
                sync(it.system.path)

        self.rounds(6, removal)

    def baseline(self) -> float:
        """Milliseconds in which 32 MiB are written and synced beside all of it: drift of the machine."""
        path, data = f"{self.plain}/baseline", os.urandom(MIB)
        found = []
        for _ in range(5):
            began = time.perf_counter()
            with open(path, "wb", buffering=0) as file:
                for _ in range(32):
                    file.write(data)
                os.fsync(file.fileno())
            found.append((time.perf_counter() - began) * 1000)
        os.unlink(path)
        return statistics.median(found)


# ---------------------------------------------------------------- trees


def fill(root: str, files: int, size: int) -> None:
    data = os.urandom(size)
    for n in range(files):
        if n % 500 == 0:
            os.mkdir(f"{root}/{n // 500}")
        fd = os.open(f"{root}/{n // 500}/{n}", os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o644)
        os.write(fd, data)
        os.close(fd)


def grown(store: Store, parent: api.Layer | None, files: int) -> api.Layer:
    """A layer of so many small files, in directories beside those of its parent."""
    layer = store.new(parent)
    with store.mount(layer) as root:
        place = f"{root}/of-{layer.number}"
        os.mkdir(place)
        fill(place, files, 60)
    return store.commit(layer)


def change_forty(root: str) -> None:
    """Ten each of: appended to, removed, new, other mode."""
    (place,) = [f"{root}/{name}" for name in os.listdir(root)]
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


def found_by_driver(store: Store, base: api.Layer, top: api.Layer, lower: int, upper: int) -> changes.Difference:
    driver = store.driver
    if api.has_changes(driver):
        return changes.of_candidates(lower, upper, driver.changes(base, top))
    if api.has_diff_tree(driver):
        tree = driver.diff_tree(top)
        fd = os.open(tree.directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            return changes.of_diff_tree(lower, fd, tree.whiteout, tree.xattr_prefix)
        finally:
            os.close(fd)
    return changes.of_trees(lower, upper)


def said(found: changes.Difference) -> list[tuple[bytes, str]]:
    return [(change.path, change.kind.value) for change in found.changes]


# ---------------------------------------------------------------- what the machine says


def _cpu() -> float:
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + children.ru_utime + children.ru_stime


def _device(system: backing.FileSystem | None) -> str | None:
    """The loop device of a file system, as a folder in /sys."""
    for name in os.listdir("/sys/block") if system is not None and system.image else ():
        with contextlib.suppress(OSError), open(f"/sys/block/{name}/loop/backing_file") as file:
            if file.read().strip() == system.image:
                return f"/sys/block/{name}"
    return None


def _written(device: str | None) -> int | None:
    if device is None:
        return None
    with open(f"{device}/stat") as file:
        return int(file.read().split()[6]) * 512


def settled(system: backing.FileSystem) -> int:
    """Bytes in use, when they do not get fewer any more."""
    found = system.used()
    for _ in range(100):
        sync(system.path)
        now = system.used()
        if now >= found:
            break
        found = now
        time.sleep(0.02)
    return found


# ---------------------------------------------------------------- the result


def interval(samples: list[float], seed: int = 1) -> tuple[float, float]:
    """In which the median lies with 95 %: by drawing again from the samples (bootstrap)."""
    chance = random.Random(seed)
    drawn = sorted(statistics.median(chance.choices(samples, k=len(samples))) for _ in range(500))
    return drawn[12], drawn[487]


def figure(samples: list[Sample]) -> dict[str, Any]:
    walls = [sample.wall for sample in samples]
    written = [sample.written for sample in samples if sample.written is not None]
    return {
        "wall": statistics.median(walls), "least": min(walls), "most": max(walls), "interval": interval(walls),
        "cpu": statistics.median(sample.cpu for sample in samples),
        "written": statistics.median(written) if written else None,
        "samples": [[round(sample.wall, 4), round(sample.cpu, 4), sample.written] for sample in samples],
    }  # fmt: skip


# row → the row of the same driver that it is divided by; the others are divided by the same row of overlay
CONTROLS = {
    "changes: as the driver finds them": "changes: walk of both trees",
    "commit: ": "commit: the same on the bare file system",
    "removal: of": "removal: rm -r and sync on the bare file system",
    "removal: from": "removal: rm -r and sync on the bare file system",
}


def control_of(row: str, rows: dict[str, Any]) -> str:
    if row.endswith(", with a limit"):
        return row.replace(", with a limit", ", without a limit")
    found = next((control for start, control in CONTROLS.items() if row.startswith(start)), "")
    return found if found in rows and found != row else ""


def ratio(one: dict[str, Any] | None, other: dict[str, Any] | None) -> str:
    if one is None or other is None or not other["wall"]:
        return "–"
    apart = one["interval"][0] > other["interval"][1] or one["interval"][1] < other["interval"][0]
    return table.number(one["wall"] / other["wall"]) + ("" if apart else " (no difference shown)")


def markdown(result: dict[str, Any]) -> str:
    names, rows = [it["name"] for it in result["subjects"]], result["rows"]
    lines = [*[f"- {line}" for line in result["head"]], ""]
    for row, found in rows.items():
        control = control_of(row, rows)
        lines += [
            f"## {row}",
            "",
            f"| driver | ms | CPU ms | written | to {control or BASE} | runs |",
            "|---|---|---|---|---|---|",
        ]
        for name in names:
            it = found.get(name)
            if it is None:
                lines.append(f"| {name} | – | – | – | – | 0 |")
                continue
            other = rows[control].get(name) if control else found.get(names[0])
            spread = f"**{table.number(it['wall'])}** ({table.number(it['least'])}…{table.number(it['most'])})"
            written = "–" if it["written"] is None else f"{it['written'] / MIB:.1f} MiB"
            compared = "1" if not control and name == names[0] else ratio(it, other)
            lines.append(
                f"| {name} | {spread} | {table.number(it['cpu'])} | {written} | {compared} | {len(it['samples'])} |"
            )
        lines.append("")
    return "\n".join([*lines, *[f"- failed: {failure}" for failure in result["failures"]]]).rstrip() + "\n"


# ---------------------------------------------------------------- drivers and their file systems


def subject(word: str, folder: str, size: int, until: contextlib.ExitStack) -> Subject:
    """NAME or NAME@KIND, on a fresh file system. LookupError with the reason if it cannot be had here."""
    name, _, wanted = word.partition("@")
    target = resolve(name, {}, seed=0, level="full")
    why = ""
    for kind in [wanted] if wanted else KINDS:
        with contextlib.ExitStack() as tried:
            try:
                system = tried.enter_context(backing.file_system(kind, f"{folder}/{name}-{kind}", size))
            except (pytest.skip.Exception, RuntimeError) as missing:
                why = str(missing)
                continue
            target.places[system.path] = system.options
            root = f"{system.path}/store"
            report = target.plugin.probe(root, target.at(root), SuiteHost())
            if report.verdict is api.Verdict.UNUSABLE:
                why = next((reason.text for reason in report.reasons), "its probe says so")
                continue
            store = Store(target, root)
            tried.callback(store.discard)
            until.enter_context(tried.pop_all())
            facts = {
                "name": f"{name}@{system.kind}", "file system": backing.fs_type(system.path),
                "options": target.at(root), "verdict": report.verdict.value, "size": size,
            }  # fmt: skip
            return Subject(facts["name"], target, system, store, facts)
    raise LookupError(why or f"{wanted} is no kind of file system")


def head(bench: Bench, load: float, before: float, after: float) -> list[str]:
    system = os.uname()
    tools = {}
    for words in (("mkfs.ext4", "-V"), ("mkfs.btrfs", "--version"), ("zfs", "--version")):
        with contextlib.suppress(OSError):
            done = subprocess.run(words, capture_output=True, text=True)
            tools[words[0]] = (done.stdout + done.stderr).strip().partition("\n")[0]
    drift, asked = after / before, bench.said
    kernel = f"{system.sysname} {system.release} {system.machine}"
    sizes = f"scale {asked.scale}, rounds {asked.rounds}, seed {asked.seed}"
    return [
        f"{time.strftime('%Y-%m-%d %H:%M')}, {kernel}, {os.cpu_count()} processors, Python {platform.python_version()}",
        f"load {load:.2f} at the start" + (": **busy: only ratios, and those with care**" if load > 1 else ""),
        f"32 MiB written and synced beside it: {before:.0f} ms before, {after:.0f} ms after"
        + (": **the machine drifted**" if not 0.9 < drift < 1.1 else ""),
        f"{sizes}, file systems of {asked.size} MiB on loop devices",
        *[f"{it.name}: {it.facts['file system']}, options {it.facts['options']}" for it in bench.subjects],
        *[f"{name}: {version}" for name, version in tools.items()],
    ]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--driver", action="append", default=[], metavar="NAME[@KIND]",
        help=f"on a file system of this kind ({', '.join(KINDS)}; default: the first that its probe takes); "
        f"repeatable. Default: every driver that can be had here. {BASE} is always among them",
    )  # fmt: skip
    parser.add_argument("--scale", type=float, default=1.0, help="of the numbers of files; 0.05 in a slow guest")
    parser.add_argument("--rounds", type=float, default=1.0, help="multiplies the number of rounds of each row")
    parser.add_argument(
        "--size", type=int, default=8192, metavar="MIB", help="of each file system (its image is sparse)"
    )
    parser.add_argument("--only", default="", help=f"some groups, with commas: {' '.join(GROUPS)}")
    parser.add_argument("--seed", type=int, default=1, help="of the order")
    parser.add_argument(
        "--place", default=None, metavar="DIR", help="where the images lie (default: the temporary directory)"
    )
    parser.add_argument("--out", default="", metavar="PATH", help="write PATH.md and PATH.json as well")
    said_ = parser.parse_args()
    load = os.getloadavg()[0]
    groups = [group for group in GROUPS if not said_.only or group in said_.only.split(",")]
    words = said_.driver or sorted(registry.names())
    words = [next((word for word in words if word.partition("@")[0] == BASE), BASE)] + [
        word for word in words if word.partition("@")[0] != BASE
    ]
    backing.enter_private_namespace()
    with tempfile.TemporaryDirectory(prefix="bench-", dir=said_.place) as folder, contextlib.ExitStack() as until:
        hoststate.ours.append(folder)
        subjects, failures = [], []
        for word in words:
            try:
                subjects.append(subject(word, folder, said_.size * MIB, until))
            except LookupError as missing:
                failures.append(f"{word}: {missing}")
                if said_.driver and word in said_.driver:
                    print(f"{word}: {missing}", file=sys.stderr)
                    return 1
        bench = Bench(subjects, folder, said_)
        bench.failures += failures
        before = bench.baseline()
        for group in groups:
            getattr(bench, group)()
        described = head(bench, load, before, bench.baseline())
    rows = {row: {name: figure(found) for name, found in by.items() if found} for row, by in bench.samples.items()}
    result = {
        "version": 1, "head": described, "subjects": [it.facts for it in subjects], "rows": rows,
        "failures": bench.failures, "seconds": round(time.monotonic() - bench.began),
    }  # fmt: skip
    text = markdown(result)
    if said_.out:
        Path(f"{said_.out}.md").write_text(text)
        Path(f"{said_.out}.json").write_text(json.dumps(result, indent=1, default=str) + "\n")
    print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
