"""Times `cowshed commit` of a container with 1,000 changes in an image of 270 MB on each driver that can be had here.

    PYTHONPATH=tests/support unshare -m --propagation private .venv/bin/python benchmarks/commit.py --rounds 5

What changed is found in the driver's own way. The control is the plain one: the same container, and both trees compared
(`cowshed diff --check`, whose time without a check is taken off). README.md tells more.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import trees
from cowshed_testing.images import Image, busybox_layer
from cowshed_testing.places import NotHere, Place, place

WHERE = ("overlay-ext4", "overlay-xfs", "copy-ext4", "copy-xfs", "btrfs")
NAME = "docker.io/bench/tree:1"
CHANGES = """
i=0; while [ $i -lt 400 ]; do echo new $i > /tree/new$i; i=$((i+1)); done
i=0; while [ $i -lt 300 ]; do echo more >> /tree/$((i/100))/$i; i=$((i+1)); done
i=1000; while [ $i -lt 1300 ]; do rm /tree/$((i/100))/$i; i=$((i+1)); done
"""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--where", action="append", metavar="DRIVER[-FILESYSTEM]", help=f"{', '.join(WHERE)}")
    parser.add_argument("--files", type=int, default=9000, help="in the image")
    parser.add_argument("--size", type=int, default=270, metavar="MB", help="of all files")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", default="", metavar="PATH", help="keep the table as PATH.md, the samples as PATH.json")
    said = parser.parse_args()
    samples: dict[str, dict[str, list[float]]] = {}
    with tempfile.TemporaryDirectory() as folder:
        layers = [busybox_layer(), trees.layer(said.files, said.size).bytes()]
        Image(layers, {"Env": ["PATH=/bin"]}, compression="").write_layout(f"{folder}/image", NAME)
        for where in said.where or WHERE:
            os.mkdir(f"{folder}/{where}")
            try:
                with place(where, Path(folder, where)) as at:
                    samples[where] = measure(at, folder, said.rounds)
            except NotHere as reason:
                print(f"{where}: {reason}", file=sys.stderr)
    text = table(samples, said.files, said.size)
    print(text)
    if said.out:
        Path(f"{said.out}.md").write_text(f"{text}\n")
        Path(f"{said.out}.json").write_text(json.dumps(samples, indent=1))
    return 0


def measure(at: Place, folder: str, rounds: int) -> dict[str, list[float]]:
    words = [at.command, "--root", f"{at.root}/store", "--run-root", f"{at.root}/run", "--config", os.devnull,
             "--driver", at.driver, *at.words]  # fmt: skip

    def cowshed(*more: str) -> tuple[float, float, str]:
        """(wall, processor) seconds and the output."""
        before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
        out = subprocess.run([*words, *more], check=True, stdout=subprocess.PIPE, text=True).stdout
        wall, after = time.monotonic() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
        return wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, out

    cowshed("load", "-q", "-i", f"{folder}/image")
    cowshed("run", "--name", "box", NAME, "sh", "-c", CHANGES)
    found: dict[str, list[float]] = {name: [] for name in ("wall", "processor", "diff", "walk")}
    for _ in range(rounds):
        os.sync()
        wall, processor, _ = cowshed("commit", "box", "bench/made:1")
        _, told, listed = cowshed("diff", "box")
        _, checked, _ = cowshed("diff", "--check", "box")
        found["wall"].append(wall)
        found["processor"].append(processor)
        found["diff"].append(told)
        found["walk"].append(checked - told)
        assert len(listed.splitlines()) >= 1000, "other changes"
        cowshed("rmi", "-f", "bench/made:1")
    cowshed("rm", "box")
    cowshed("rmi", NAME)
    return found


def table(samples: dict[str, dict[str, list[float]]], files: int, megabytes: int) -> str:
    lines = [
        f"1,000 changes in {files} files of {megabytes} MB; load {os.getloadavg()[0]:.1f}; Linux {os.uname().release}",
        "",
        "| driver | commit, wall s (least, most) | commit, processor s | diff, processor s | both trees, processor s |",
        "|---|---|---|---|---|",
    ]
    for name, found in samples.items():
        middle = {key: statistics.median(values) for key, values in found.items()}
        lines.append(
            f"| {name} | {middle['wall']:.2f} ({min(found['wall']):.2f}, {max(found['wall']):.2f}) | "
            f"{middle['processor']:.2f} | {middle['diff']:.2f} | {middle['walk']:.2f} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
