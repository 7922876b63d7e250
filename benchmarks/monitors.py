#!/usr/bin/env python3
"""What stands beside a container, measured side by side: the engine's monitor, conmon, and containerd's shim.

    .venv/bin/python benchmarks/monitors.py [--count 4] [--conmon PATH] [--shim PATH] [--runc PATH]

Of each there are as many as --count says, all at once, each beside a container that sleeps and has written a line. A
row is the median of what is private to one (smaps_rollup: what would be free if it went), of that what it has written,
and of its share of all. It needs root, busybox, runc and what `tools/unpack build/runtimes containerd conmon` brings.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import tempfile
import time
from pathlib import Path

TOP = Path(__file__).resolve().parent.parent
UNPACKED = TOP / "build/runtimes/usr/bin"
SCRIPT = ("sh", "-c", "echo up; exec sleep 1000")


def call(*words: str | Path, **more: str) -> str:
    return subprocess.run([*map(str, words)], check=True, text=True, stdout=subprocess.PIPE, **more).stdout  # type: ignore[call-overload,no-any-return]


def root(folder: Path) -> Path:
    for name in ("bin", "dev", "proc", "sys", "etc", "tmp"):
        (folder / name).mkdir(parents=True)
    shutil.copy("/bin/busybox", folder / "bin/busybox")
    for name in ("sh", "sleep"):
        (folder / "bin" / name).symlink_to("busybox")
    return folder


def parent(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def sizes(pid: int) -> tuple[int, int, int]:
    """kB private, written, and proportional."""
    rows = [line.split() for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines() if line.endswith("kB")]
    found = {words[0]: int(words[1]) for words in rows}
    return found["Private_Clean:"] + found["Private_Dirty:"], found["Private_Dirty:"], found["Pss:"]


class Ours:
    """The engine, with its own runtime or another."""

    def __init__(self, folder: Path, runtime: str = "") -> None:
        self.words = [
            str(TOP / ".venv/bin/cowshed"),
            "--root",
            str(folder / "store"),
            "--run-root",
            str(folder / "run"),
        ]
        self.options = ["--runtime", runtime] if runtime else []
        archive = folder / "image.tar"
        folder.mkdir()
        call("tar", "-C", root(folder / "rootfs"), "-cf", archive, ".")
        call(*self.words, "import", archive, "small")
        self.names: list[str] = []

    def start(self) -> int:
        """The pid of what stands beside a new container."""
        self.names.append(call(*self.words, "run", "-d", *self.options, "small", *SCRIPT).strip())
        pid = int(json.loads(call(*self.words, "inspect", self.names[-1]))[0]["State"]["Pid"])
        return parent(pid)

    def close(self) -> None:
        if self.names:
            call(*self.words, "rm", "-f", *self.names)


class Conmon:
    def __init__(self, folder: Path, conmon: str, runc: str) -> None:
        self.folder, self.conmon, self.runc = folder, conmon, runc
        self.names: list[str] = []
        root(folder / "rootfs")
        call(runc, "spec", cwd=str(folder))
        config = json.loads((folder / "config.json").read_text())
        config["process"].update(args=list(SCRIPT), terminal=False, env=["PATH=/bin"])
        (folder / "config.json").write_text(json.dumps(config))

    def start(self) -> int:
        name = f"conmon-{os.getpid()}-{len(self.names)}"
        self.names.append(name)
        file = self.folder / f"{name}.pid"
        call(self.conmon, "--cid", name, "--cuuid", name, "--name", name, "--runtime", self.runc,
             "--bundle", self.folder, "--container-pidfile", file, "--log-path", f"k8s-file:{self.folder}/{name}.log",
             "--log-level", "error", "--socket-dir-path", self.folder, "--exit-dir", self.folder)  # fmt: skip
        until = time.monotonic() + 30
        while not (file.exists() and file.read_text()):  # conmon has gone on by itself
            if time.monotonic() > until:
                raise SystemExit(f"conmon makes no container: {self.folder}/{name}.log")
            time.sleep(0.05)
        call(self.runc, "start", name)
        return parent(int(file.read_text()))

    def close(self) -> None:
        for name in self.names:
            call(self.runc, "delete", "--force", name)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=4)
    parser.add_argument("--conmon", default=str(UNPACKED / "conmon"))
    parser.add_argument("--shim", default=str(UNPACKED / "containerd-shim-runc-v2"))
    parser.add_argument("--runc", default=shutil.which("runc"))
    said = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        makers = {
            "the engine's monitor": Ours(folder / "ours"),
            "conmon": Conmon(folder / "conmon", said.conmon, said.runc),
            "containerd-shim-runc-v2": Ours(folder / "shim", said.shim),
        }
        try:
            beside = {name: [maker.start() for _ in range(said.count)] for name, maker in makers.items()}
            time.sleep(2)  # until each has written its line into its log
            print("| beside each container | private kB | of that written | proportional kB |\n|---|---|---|---|")
            for name, pids in beside.items():
                cells = [str(round(statistics.median(column))) for column in zip(*map(sizes, pids), strict=True)]
                print(f"| {name} ({Path(f'/proc/{pids[0]}/comm').read_text().strip()}) | {' | '.join(cells)} |")
        finally:
            for maker in makers.values():
                maker.close()


if __name__ == "__main__":
    main()
