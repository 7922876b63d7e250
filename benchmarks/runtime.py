#!/usr/bin/env python3
"""Time cowshed-runtime and the engine's launch in its own process against runc and crun, interleaved, in one run.

    .venv/bin/python benchmarks/runtime.py [--rounds 30] [--runc PATH] [--crun PATH] [--json FILE]

Each row is the median of all rounds, in milliseconds, as wall time and as processor time of the command and what it
waits for, with the ratio to runc and to crun of the same run. A machine that does other things makes all of them
slower; the ratios of processor time stay. It needs root, busybox, runc and crun. Everything runs in a mount namespace
without the hierarchy of version 2, which crun refuses beside those of version 1.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from cowshed_linux import process
from cowshed_runtime import defaults, launcher, seccomp
from cowshed_runtime.cgroup.group import Group
from cowshed_runtime.fastjson import loads

TOP = Path(__file__).resolve().parent.parent
OURS = TOP / ".venv/bin/cowshed-runtime"
_V1 = 'umount /sys/fs/cgroup/unified 2>/dev/null || true; exec "$@"'


def bundle(folder: Path, *args: str) -> Path:
    root = folder / "rootfs"
    for name in ("bin", "dev", "proc", "sys", "etc", "tmp"):
        (root / name).mkdir(parents=True)
    shutil.copy("/bin/busybox", root / "bin/busybox")
    for name in ("true", "sleep"):
        (root / "bin" / name).symlink_to("busybox")
    config = defaults.config()
    config["ociVersion"] = "1.0.2"  # what every crun takes
    config["process"].update(args=list(args), env=["PATH=/bin"])
    rules = config["linux"]["resources"]["devices"]
    # crun 1.8 takes no minor of -1 for all
    config["linux"]["resources"]["devices"] = [{k: v for k, v in rule.items() if v != -1} for rule in rules]
    config["linux"]["seccomp"] = seccomp.default_profile(list(defaults.CAPABILITIES))
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def timed(*words: str) -> tuple[float, float]:
    """Wall and processor milliseconds of a command and the children that it waited for."""
    null = os.open("/dev/null", os.O_RDWR)
    begin = time.monotonic()
    pid = os.posix_spawn(
        words[0], words, dict(os.environ), file_actions=[(os.POSIX_SPAWN_DUP2, null, n) for n in (0, 1, 2)]
    )
    _, status, usage = os.wait4(pid, 0)
    wall = time.monotonic() - begin
    os.close(null)
    if status:
        raise SystemExit(f"{' '.join(words)}: status {os.waitstatus_to_exitcode(status)}")
    return 1000 * wall, 1000 * (usage.ru_utime + usage.ru_stime)


class Runtime:
    def __init__(self, words: list[str], folder: Path) -> None:
        self.words = [*words, "--root", str(folder / "state")]
        (folder / "state").mkdir(parents=True)
        self.short = bundle(folder / "short", "true")
        self.long = bundle(folder / "long", "sleep", "1000")
        self.count = 0

    def name(self) -> str:
        self.count += 1
        return f"bench-{os.getpid()}-{id(self)}-{self.count}"

    def run(self) -> tuple[float, float]:
        return timed(*self.words, "run", "--bundle", str(self.short), self.name())

    def life(self) -> tuple[float, float]:
        name = self.name()
        parts = [
            timed(*self.words, "create", "--bundle", str(self.long), name),
            timed(*self.words, "start", name),
            timed(*self.words, "delete", "--force", name),
        ]
        return sum(wall for wall, _ in parts), sum(cpu for _, cpu in parts)

    def begin(self) -> None:
        self.held = self.name()
        timed(*self.words, "create", "--bundle", str(self.long), self.held)
        timed(*self.words, "start", self.held)

    def exec(self) -> tuple[float, float]:
        return timed(*self.words, "exec", self.held, "true")

    def end(self) -> None:
        timed(*self.words, "delete", "--force", self.held)


class InProcess:
    """What the engine does: a fork of a process that has everything imported launches, and the container becomes the
    child of its parent."""

    def __init__(self, folder: Path) -> None:
        self.folder = bundle(folder, "true")
        self.cache, self.count = str(folder), 0
        self.null = os.open("/dev/null", os.O_RDWR)

    def run(self) -> tuple[float, float]:
        self.count += 1
        group = Group(f"bench-{os.getpid()}-in-{self.count}")
        before, begin = _used(), time.monotonic()
        read_end, write_end = os.pipe()
        helper = os.fork()
        if helper == 0:
            try:
                os.chdir(self.folder)
                config = loads((self.folder / "config.json").read_bytes())
                made = launcher.launch(config, -1, (self.null,) * 3, group=group, cache=self.cache)
                os.write(write_end, str(made.pid).encode())
            finally:
                os._exit(0)
        os.close(write_end)
        pid = int(os.read(read_end, 64))
        os.close(read_end)
        os.waitpid(helper, 0)
        os.waitpid(pid, process.WALL)
        group.remove()
        return 1000 * (time.monotonic() - begin), 1000 * (_used() - before)


def _used() -> float:
    """Processor seconds of this process and the children that it waited for."""
    parts = [resource.getrusage(whose) for whose in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(part.ru_utime + part.ru_stime for part in parts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--runc", default=shutil.which("runc"))
    parser.add_argument("--crun", default=shutil.which("crun"))
    parser.add_argument("--json")
    said = parser.parse_args()
    if not os.environ.get("COWSHED_BENCH_INSIDE"):
        words = ["unshare", "--mount", "--propagation", "private", "sh", "-c", _V1, "sh", sys.executable, *sys.argv]
        os.execvpe(words[0], words, {**os.environ, "COWSHED_BENCH_INSIDE": "1"})
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        runtimes = {
            name: Runtime(words, folder / name)
            for name, words in (("cowshed", [str(OURS)]), ("runc", [said.runc]), ("crun", [said.crun]))
        }
        inside = InProcess(folder / "inside")
        rows: dict[str, dict[str, list[tuple[float, float]]]] = {}

        def add(row: str, who: str, measured: tuple[float, float]) -> None:
            rows.setdefault(row, {}).setdefault(who, []).append(measured)

        for runtime in runtimes.values():
            runtime.begin()
        gc.freeze()  # as the engine's zygote does before it forks
        gc.disable()
        for number in range(said.rounds + 1):
            for name, runtime in runtimes.items():
                for row, measure in (("run", runtime.run), ("create, start, delete", runtime.life),
                                     ("exec", runtime.exec)):  # fmt: skip
                    measured = measure()
                    if number:  # the first fills caches
                        add(row, name, measured)
            measured = inside.run()
            if number:
                add("run", "cowshed, in its own process", measured)
        for runtime in runtimes.values():
            runtime.end()
    table(rows, said)


def table(rows: dict[str, dict[str, list[tuple[float, float]]]], said: argparse.Namespace) -> None:
    versions = [subprocess.run([path, "--version"], capture_output=True, text=True, check=True).stdout.splitlines()[0]
                for path in (said.runc, said.crun)]  # fmt: skip
    load = os.getloadavg()[0]
    print(f"{', '.join(versions)}; kernel {os.uname().release}; {said.rounds} rounds; load {load:.1f}\n")
    print("| operation | runtime | wall ms | of runc | of crun | processor ms | of runc | of crun |")
    print("|---|---|---|---|---|---|---|---|")
    result: dict[str, dict[str, dict[str, float]]] = {}
    for row, by in rows.items():
        medians = {name: [statistics.median(one[at] for one in all_) for at in (0, 1)] for name, all_ in by.items()}
        for name, values in medians.items():
            cells = [f"{value:.1f} | {value / medians['runc'][at]:.2f} | {value / medians['crun'][at]:.2f}"
                     for at, value in enumerate(values)]  # fmt: skip
            print(f"| {row} | {name} | {' | '.join(cells)} |")
            result.setdefault(row, {})[name] = {"wall_ms": values[0], "cpu_ms": values[1]}
    if said.json:
        Path(said.json).write_text(json.dumps({"versions": versions, "load": load, "rows": result}, indent=2) + "\n")


if __name__ == "__main__":
    main()
