"""Times `cowshed storage convert` beside `cp -a` of the same tree on the same file system, in turns: a table.

    PYTHONPATH=tests/support .venv/bin/python benchmarks/convert.py --kind ext4 --kind btrfs --rounds 5

The image has one layer, so that its tree is what a copy copies. A conversion makes the twin, writes it back to the disk
and reads both trees again; so there are two controls: `cp -a` with a sync, and that with both trees read and hashed.
README.md tells more.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import trees
from cowshed_testing.filesystems import mounted
from cowshed_testing.images import Image

COMMAND = str(Path(__file__).parents[1] / ".venv/bin/cowshed")
NAME = "bench/tree:1"
TARGETS = ("copy", "btrfs")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kind", action="append", metavar="KIND", help="ext4, xfs or btrfs (ext4 and btrfs)")
    parser.add_argument("--files", type=int, default=6000, help="in the image")
    parser.add_argument("--size", type=int, default=120, metavar="MB", help="of all files, most of it in a few")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", default="", metavar="PATH", help="keep the table as PATH.md, the samples as PATH.json")
    said = parser.parse_args()
    tables, samples = [], {}
    for kind in said.kind or ("ext4", "btrfs"):
        with tempfile.TemporaryDirectory() as folder, mounted(kind, f"{folder}/disk", "4G") as place:
            found = samples[kind] = measure(place, folder, said.files, said.size, said.rounds)
            tables.append(table(kind, found, said.files, said.size))
    text = "\n\n".join(tables)
    print(text)
    if said.out:
        Path(f"{said.out}.md").write_text(f"{text}\n")
        Path(f"{said.out}.json").write_text(json.dumps(samples, indent=1))
    return 0


class Cowshed:
    def __init__(self, place: str, folder: str) -> None:
        self.root = f"{place}/store"
        self._words = [COMMAND, "--root", self.root, "--run-root", f"{folder}/run", "--config", os.devnull]

    def __call__(self, *words: str) -> str:
        return subprocess.run([*self._words, *words], check=True, stdout=subprocess.PIPE, text=True).stdout


def measure(place: str, folder: str, files: int, megabytes: int, rounds: int) -> dict[str, list[tuple[float, float]]]:
    cowshed = Cowshed(place, folder)
    Image([trees.layer(files, megabytes, owners=7).bytes()], compression="").write_layout(f"{folder}/image", NAME)
    cowshed("--driver", "overlay", "load", "-q", "-i", f"{folder}/image")
    (layer,) = os.listdir(f"{cowshed.root}/drivers/overlay/committed")
    tree = f"{cowshed.root}/drivers/overlay/committed/{layer}/upper"
    usable = {d["Name"] for d in json.loads(cowshed("driver", "why", "--format", "json"))["Drivers"]
              if d["Verdict"] != "unusable"}  # fmt: skip
    work: dict[str, Callable[[], object]] = {
        "cp -a, sync": lambda: copied(tree, f"{place}/copied"),
        "cp -a, sync, both read": lambda: read(tree, copied(tree, f"{place}/copied")),
        **{f"convert to {name}": lambda name=name: cowshed("storage", "convert", "--to", name, "--images", "-q")
           for name in TARGETS if name in usable},
    }  # fmt: skip
    samples: dict[str, list[tuple[float, float]]] = {name: [] for name in work}
    for n in range(rounds + 1):
        names = list(work)
        for name in names[n % len(names) :] + names[: n % len(names)]:
            os.sync()
            with timed() as taken:
                work[name]()
            if n:  # the first one warms up
                samples[name].append((taken[0], taken[1]))
            shutil.rmtree(f"{place}/copied", ignore_errors=True)
            if name.startswith("convert"):
                cowshed("storage", "rollback", "-f", "-q")
    return samples


@contextlib.contextmanager
def timed() -> Iterator[list[float]]:
    """Wall seconds, and processor seconds of children that have ended meanwhile."""
    taken: list[float] = []
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    yield taken
    wall, after = time.monotonic() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
    taken += [wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime]


def copied(tree: str, target: str) -> str:
    subprocess.run(["cp", "-a", tree, target], check=True)
    subprocess.run(["sync", "-f", target], check=True)
    return target


def read(*trees: str) -> None:
    digests = set()
    for each in trees:
        script = 'cd "$1" && tar --sort=name -cf - . | sha256sum'
        digests.add(subprocess.run(["sh", "-c", script, "sh", each], check=True, stdout=subprocess.PIPE).stdout)
    assert len(digests) == 1, "the copy is another tree"


def table(kind: str, samples: dict[str, list[tuple[float, float]]], files: int, megabytes: int) -> str:
    control = statistics.median(wall for wall, _ in samples["cp -a, sync"])
    lines = [
        f"{kind}: {files} files, {megabytes} MB, {len(next(iter(samples.values())))} rounds",
        "",
        "| what | wall s (least, most) | MB/s | processor s | wall, by `cp -a` |",
        "|---|---|---|---|---|",
    ]
    for name, found in samples.items():
        walls = [wall for wall, _ in found]
        wall, processor = statistics.median(walls), statistics.median(cpu for _, cpu in found)
        lines.append(
            f"| {name} | {wall:.2f} ({min(walls):.2f}, {max(walls):.2f}) | {megabytes / wall:.0f} | {processor:.2f} | "
            f"{wall / control:.2f} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
