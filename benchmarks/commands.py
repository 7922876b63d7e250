"""Times Cowshed's commands, and those of the engines that are installed beside it, on the same images: `make bench`.

README.md tells the method. Needs root, tests/support in PYTHONPATH and, for a registry of its own, docker-registry.
"""

from __future__ import annotations

import argparse
import contextlib
import glob
import json
import os
import platform
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import samples
import table
from cowshed_testing.registry import Ours, Registry, Remote
from engines import KNOWN, Engine, Failed, Runner

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

TOP = Path(__file__).parents[1]
COMMAND = TOP / ".venv/bin/cowshed"
NAP = ("sleep", "100000")
PULLS = {
    "big": "pull big (101 MB, gzip)", "big-zstd": "pull big-zstd (91 MB)", "many": "pull many (30,000 files)",
    "layers": "pull layers (12)",
}  # fmt: skip
# What can be asked for, in order, and the images that it needs
GROUPS = {
    "short": ["small"], "parallel": ["small"], "pulls": list(PULLS), "commit": ["small"], "load": ["big"],
    "save": ["big"], "push": ["big"],
    "output": ["small"], "sequence": ["small"], "growth": ["small"], "depth": ["deep", "small"],
}  # fmt: skip
_PAUSE = 0.25  # seconds after a timed command, in which work that trails it ends


class Bench:
    def __init__(self, ours: Engine, peers: dict[str, Engine], registry: str, work: str, rounds: float) -> None:
        self.ours, self.peers, self.registry, self.work, self.rounds = ours, peers, registry, work, rounds
        self.none = Engine("cowshed", [*ours.prefix, "--config", f"{work}/none.toml"], ours.runner)
        self.none.prefix = [f"{work}/var/none" if w == f"{work}/var/store" else w for w in self.none.prefix]
        self.samples: dict[str, dict[str, list[float]]] = {}
        self.failures: list[str] = []
        self.started = time.time()
        self.count = 0

    # ------------------------------------------------------------ helpers

    def image(self, name: str) -> str:
        return f"{self.registry}/bench/{name}:latest"

    def name(self) -> str:
        self.count += 1
        return f"b{os.getpid()}-{self.count}"

    def record(self, row: str, column: str, value: float) -> None:
        self.samples.setdefault(row, {}).setdefault(column, []).append(value)

    def time(self, row: str, engine: Engine, words: list[str], column: str = "", **options: Any) -> float:
        """Run a command and record its milliseconds."""
        took: float = engine(words, **options)["ms"]
        self.record(row, column or engine.name, took)
        time.sleep(_PAUSE)
        return took

    def engines(self, *names: str) -> list[Engine]:
        """Ours and those of the peers that are there."""
        return [self.ours, *[self.peers[name] for name in names if name in self.peers]]

    def each(self, rounds: float, step: Callable[[Engine], None], engines: list[Engine]) -> None:
        """Every engine in turn, another one first in each round. One that fails takes no further part."""
        dead: set[str] = set()
        for n in range(max(1, round(rounds * self.rounds))):
            shift = n % len(engines)
            for engine in [*engines[shift:], *engines[:shift]]:
                if engine.name in dead:
                    continue
                try:
                    step(engine)
                except Failed as error:
                    dead.add(engine.name)
                    self.failures.append(f"{step.__name__}, {engine.name}: {' '.join(str(error).split())}")
                    with contextlib.suppress(Failed):
                        engine.clean()
        print(f"{time.time() - self.started:5.0f} s  {step.__name__}", file=sys.stderr, flush=True)

    def prepare(self, names: tuple[str, ...], engines: list[Engine]) -> None:
        for engine in engines:
            engine.clean()
            for name in names:
                engine(engine.pull(self.image(name)))

    # ------------------------------------------------------------ groups

    def short(self) -> None:
        engines = self.engines("podman", "docker")
        self.prepare(("small",), engines)
        small = self.image("small")

        def commands(engine: Engine) -> None:
            docker = engine.name == "docker"  # asked for its listings alone
            name = self.name()
            if docker:
                engine(engine.run(small, *NAP, name=name))
            else:
                self.time("run --rm true", engine, engine.run(small, "true", rm=True))
                self.time("run -d", engine, engine.run(small, *NAP, name=name))
                self.time("exec true", engine, engine.exec(name, "true"))
            for row, words in (("inspect", engine.inspect(name)), ("ps -a", engine.ps()), ("images", engine.images())):
                self.time(row, engine, words)
            if docker:
                engine(engine.rm(name))
                return
            self.time("rm -f of a running one", engine, engine.rm(name))
            name = self.name()
            self.time("create", engine, engine.create(small, *NAP, name=name))
            self.time("start", engine, engine.start(name))
            engine(engine.rm(name))

        def networked(engine: Engine) -> None:
            network = engine is not self.ours
            one, two = self.name(), self.name()
            row = "{}, podman with its network"
            self.time(row.format("run -d"), engine, engine.run(small, *NAP, name=one, network=network))
            engine(engine.create(small, *NAP, name=two, network=network))
            self.time(row.format("start"), engine, engine.start(two))
            engine(engine.rm(one, two))

        self.each(15, commands, engines)
        self.each(7, networked, self.engines("podman"))

    def parallel(self) -> None:
        engines = self.engines("podman")
        self.prepare(("small",), engines)

        def twenty_at_once(engine: Engine) -> None:
            names = [self.name() for _ in range(20)]
            words = [engine.run(self.image("small"), *NAP, name=name) for name in names]
            self.record("run -d, 20 at once", engine.name, engine(*words)["ms"])
            time.sleep(1.5)
            pids = [engine.pid(name) for name in names]
            monitors = [_parent(pid) for pid in pids]
            used = sum(map(_pss, [*pids, *monitors])) / len(names)
            self.record("memory of an idle container (PSS)", engine.name, used)
            if engine is self.ours:
                self.record("of which the monitor", engine.name, sum(map(_pss, monitors)) / len(names))
                zygote = _parent(monitors[0])
                twenty = _pss(zygote)
                engine.clean()
                time.sleep(0.5)
                self.record("standing processes (PSS)", engine.name, max(twenty, _pss(zygote)))
            engine.clean()

        def twenty_networked(engine: Engine) -> None:
            words = [
                engine.run(self.image("small"), *NAP, name=self.name(), network=engine is not self.ours)
                for _ in range(20)
            ]
            self.record("run -d, 20 at once, podman with its network", engine.name, engine(*words)["ms"])
            engine.clean()

        self.each(3, twenty_at_once, engines)
        self.each(3, twenty_networked, engines)
        daemons = [pid for name in ("dockerd", "containerd") for pid in _named(name)]
        if daemons:
            self.record("standing processes (PSS)", "docker", sum(map(_pss, daemons)))

    def sequence(self) -> None:
        engines = self.engines("podman")
        self.prepare(("small",), engines)

        def fifty_in_sequence(engine: Engine, suffix: str = "", network: bool = False) -> None:
            took = 0.0
            for _ in range(50):
                took += engine(engine.run(self.image("small"), *NAP, name=self.name(), network=network))["ms"]
            self.record(f"run -d, 50 in sequence{suffix}", engine.name, took)
            engine.clean()

        def fifty_networked(engine: Engine) -> None:
            fifty_in_sequence(engine, ", podman with its network", engine is not self.ours)

        self.each(2, fifty_in_sequence, engines)
        self.each(2, fifty_networked, engines)

    def pulls(self) -> None:
        """Ours with both durabilities, in a store of its own each."""
        memory: list[float] = []
        for name, row in PULLS.items():
            reference = self.image(name)

            def pulling(engine: Engine, row: str = row, reference: str = reference) -> None:
                durable = engine is self.ours
                engine(engine.rmi(reference), check=False)
                free = os.statvfs(f"{self.work}/var")
                os.sync()
                time.sleep(0.3)
                done = engine(engine.pull(reference))
                for kind in ("commit",) if durable else ("none",) if engine is self.none else ("none", "commit"):
                    title = row if kind == "none" else row.partition(" (")[0]
                    self.record(f"{title}, durability {kind}", engine.name, done["ms"])
                if engine in (self.ours, self.none):
                    memory.append(done["rss"])
                    os.sync()
                    now = os.statvfs(f"{self.work}/var")
                    if "/big" in reference and (free.f_bfree - now.f_bfree) * now.f_frsize < 200e6:
                        raise Failed(f"{reference}: no layer was unpacked: it was there already")
                engine(engine.rmi(reference))

            self.each(5, pulling, [self.none, *self.engines("containerd")])
        if memory:
            self.record("pull, peak memory", "cowshed", max(memory))
        if "podman" in self.peers:
            podman = self.peers["podman"]
            podman(podman.rmi(self.image("big")), check=False)
            self.record("pull, peak memory", "podman", podman(podman.pull(self.image("big")))["rss"])
            podman(podman.rmi(self.image("big")))

    def commit(self) -> None:
        engines = self.engines("podman")
        self.prepare(("small",), engines)
        fill = "mkdir /d; i=0; while [ $i -lt 1000 ]; do echo $i > /d/$i; i=$((i+1)); done"

        def committing(engine: Engine) -> None:
            name, image = self.name(), "localhost/bench-commit:latest"
            engine(engine.run(self.image("small"), "sh", "-c", fill, name=name))
            engine(engine.wait(name))
            os.sync()
            self.time("commit of 1,000 files", engine, engine.commit(name, image))
            engine(engine.rm(name))
            engine(engine.rmi(image))

        self.each(5, committing, engines)

    def load(self) -> None:
        path = f"{self.work}/var/big.tar"
        samples.archive(self.registry, "big", path)
        loaded = "localhost/bench/big:latest"

        def loading(engine: Engine) -> None:
            engine(engine.rmi(loaded), check=False)
            engine(engine.rmi(self.image("big")), check=False)
            os.sync()
            time.sleep(0.3)
            done = engine(engine.load(), feed=path)
            took = done["ms"]
            if engine is not self.none:
                self.record("load of a docker archive, processor time", engine.name, done["cpu"])
            if engine is not self.ours:
                self.record("load of a docker archive (268 MB), durability none", engine.name, took)
            if engine is not self.none:
                self.record("load of a docker archive, durability commit", engine.name, took)
            engine(engine.rmi(loaded))

        self.each(3, loading, [self.none, *self.engines("podman")])
        os.unlink(path)

    def save(self) -> None:
        """To a place that takes everything, so that it is the engines' own work."""
        engines = self.engines("podman")
        self.prepare(("big",), engines)
        memory: dict[str, float] = {}

        def saving(engine: Engine) -> None:
            for kind, title in (("docker-archive", "a docker archive"), ("oci-archive", "an OCI archive")):
                done = engine(engine.save(self.image("big"), kind), quiet=True)
                self.record(f"save of {title} (268 MB)", engine.name, done["ms"])
                self.record(f"save of {title}, processor time", engine.name, done["cpu"])
                memory[engine.name] = max(memory.get(engine.name, 0), done["rss"])

        self.each(5, saving, engines)
        for name, most in memory.items():
            self.record("save, peak memory", name, most)
        for engine in engines:
            engine(engine.rmi(self.image("big")))

    def push(self) -> None:
        """Each to a registry that is empty, so that nothing is there already; skopeo's source is a layout on the same
        file system as our store."""
        layout, skopeo = f"{self.work}/var/layout", Engine("skopeo", ["skopeo"], self.ours.runner)
        skopeo(skopeo.words("copy", "--src-tls-verify=false", f"docker://{self.image('big')}", f"oci:{layout}:big"))
        self.prepare(("big",), [self.ours])

        def pushing(engine: Engine) -> None:
            for title, serve in (("", Registry), (" to our registry", lambda folder: Ours(str(COMMAND), folder))):
                folder = f"{self.work}/var/{self.name()}"
                with serve(folder) as target:
                    to = f"{target.address}/bench/big:latest"
                    words = engine.words("copy", "-q", "--dest-tls-verify=false", f"oci:{layout}:big", f"docker://{to}")
                    if engine is self.ours:
                        engine(engine.words("tag", self.image("big"), to))
                        words = engine.words("push", "-q", to)
                    os.sync()
                    time.sleep(_PAUSE)
                    done = engine(words)
                    self.record(f"push big (101 MB){title}", engine.name, done["ms"])
                    self.record(f"push{title}, processor time", engine.name, done["cpu"])
                    self.record(f"push{title}, peak memory", engine.name, done["rss"])
                    if engine is self.ours:
                        engine(engine.words("rmi", to))
                shutil.rmtree(folder)

        self.each(7, pushing, [self.ours, skopeo])
        self.ours(self.ours.rmi(self.image("big")))
        shutil.rmtree(layout)

    def output(self) -> None:
        engines = self.engines("podman")
        self.prepare(("small",), engines)
        write = f"yes {'x' * 99} | head -c 10000000 > /dev/shm/f; for i in {' '.join(map(str, range(20)))}; "
        write += "do cat /dev/shm/f; done"

        def writing(engine: Engine) -> None:
            name = self.name()
            words = engine.run(self.image("small"), "sh", "-c", write, rm=True)
            self.record("output of 200 MB, attached", engine.name, 200e3 / engine(words, quiet=True)["ms"])
            engine(engine.run(self.image("small"), "sh", "-c", write, name=name))
            engine(engine.wait(name))
            self.record("logs of 200 MB", engine.name, 200e3 / engine(engine.logs(name), quiet=True)["ms"])
            engine(engine.rm(name))

        self.each(3, writing, engines)

    def growth(self) -> None:
        small = self.image("small")
        full = Engine("cowshed", [*self.ours.prefix], self.ours.runner)
        full.prefix = [f"{self.work}/var/full" if w == f"{self.work}/var/store" else w for w in full.prefix]
        full(full.pull(small))
        full(full.create(small, *NAP, name=self.name()))  # what the others are made like
        fill = [sys.executable, "-m", "cowshed_testing.fill", f"{self.work}/var/full", f"{self.work}/run"]
        subprocess.run(
            [*fill, "--layers", "10000", "--containers", "1000"], check=True, stdout=subprocess.DEVNULL,
            env={**os.environ, "PYTHONPATH": str(TOP / "tests/support")},
        )  # fmt: skip
        row = "run --rm in a store of 10,000 layers, 1,000 containers"
        self.ours(self.ours.pull(small))

        def running(engine: Engine) -> None:
            column = "cowshed" if engine is full else "empty store"
            self.time(row, engine, engine.run(small, "true", rm=True), column)

        self.each(11, running, [full, self.ours])

        listed = [full]
        if "docker" in self.peers:
            docker = self.peers["docker"]
            docker(docker.pull(small))
            for _ in range(100):  # ten at once: in a row they would take minutes
                docker(*[docker.create(small, *NAP, name=self.name()) for _ in range(10)])
            listed.append(docker)

        def listing(engine: Engine) -> None:
            self.time("ps -a of 1,000", engine, engine.ps())

        self.each(7, listing, listed)
        for engine in listed[1:]:
            engine.clean()

    def depth(self) -> None:
        deep, small = self.image("deep"), self.image("small")
        for image in (deep, small):
            self.none(self.none.pull(image))

        def running(engine: Engine) -> None:
            row = "run --rm on a chain of 500 layers"
            self.time(row, engine, engine.run(deep, "cat", "/srv/1", f"/srv/{samples.DEEP - 1}", rm=True))
            self.time(row, engine, engine.run(small, "true", rm=True), "one layer")

        self.each(7, running, [self.none])

    # ------------------------------------------------------------ results

    def rows(self) -> list[dict[str, Any]]:
        return [table.judge(row, self.samples.get(row["row"], {})) for row in table.ROWS]

    def close(self) -> None:
        for engine in (self.ours, *self.peers.values()):
            with contextlib.suppress(Failed):
                engine.clean()
                if engine is not self.ours:
                    engine(engine.rmi(*map(self.image, ("small", *PULLS))), check=False)


# ---------------------------------------------------------------- processes


def _stat(pid: int) -> list[str]:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()


def _parent(pid: int) -> int:
    return int(_stat(pid)[1])


def _pss(pid: int) -> float:
    """Proportional set size in MB; 0 of a process that has gone."""
    try:
        found = re.search(r"^Pss:\s+(\d+)", Path(f"/proc/{pid}/smaps_rollup").read_text(), re.M)
    except (FileNotFoundError, ProcessLookupError):
        return 0.0
    return int(found[1]) / 1000 if found else 0.0


def _named(name: str) -> list[int]:
    found = []
    for path in glob.glob("/proc/[0-9]*/comm"):
        with contextlib.suppress(OSError):
            if Path(path).read_text().strip() == name:
                found.append(int(path.split("/")[2]))
    return found


def _end_zygotes(run: str) -> None:
    for path in glob.glob("/proc/[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            if f"{run}/".encode() in Path(path).read_bytes():
                os.kill(int(path.split("/")[2]), signal.SIGTERM)


# ---------------------------------------------------------------- the place


@contextlib.contextmanager
def place(work: str) -> Iterator[None]:
    """A fresh journalled ext4 on a loop device for our stores, and a tmpfs for what a reboot may take."""
    os.makedirs(f"{work}/var")
    os.makedirs(f"{work}/run")
    disk = f"{work}/disk.img"
    subprocess.run(["truncate", "-s", "20G", disk], check=True)
    options = "lazy_itable_init=0,lazy_journal_init=0"
    subprocess.run(["mkfs.ext4", "-q", "-F", "-E", options, disk], check=True)
    subprocess.run(["mount", "-o", "loop,noatime", disk, f"{work}/var"], check=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "mode=755", "tmpfs", f"{work}/run"], check=True)
    Path(f"{work}/none.toml").write_text('[storage]\ndurability = "none"\n')
    try:
        yield
    finally:
        _end_zygotes(f"{work}/run")
        time.sleep(0.5)
        for target in ("run", "var"):
            subprocess.run(["umount", "-l", f"{work}/{target}"], check=False)
        os.unlink(disk)
        os.unlink(f"{work}/none.toml")
        for target in ("run", "var", ""):
            os.rmdir(f"{work}/{target}")


@contextlib.contextmanager
def images(address: str, folder: str, names: list[str]) -> Iterator[str]:
    """A registry that has the images: the one at address, or one of our own."""
    with contextlib.ExitStack() as stack:
        remote = Remote(address) if address else stack.enter_context(Registry(folder))
        for name in names:
            if samples.manifest(remote.address, name) is None:
                print(f"pushing bench/{name} to {remote.address}", file=sys.stderr, flush=True)
                remote.push(samples.make(name), f"bench/{name}")
        yield remote.address


def head(peers: dict[str, Engine], load: float) -> list[str]:
    versions = []
    for name, engine in peers.items():
        said = engine(engine.words("--version"), check=False)["out"].strip()
        versions.append(f"{name}: {said.splitlines()[0] if said else 'unknown'}")
    revision = subprocess.run(
        ["git", "describe", "--always", "--dirty"], cwd=TOP, capture_output=True, text=True, check=False
    )
    memory = re.search(r"MemTotal:\s+(\d+)", Path("/proc/meminfo").read_text())
    model = re.search(r"model name\s*:\s*(.*)", Path("/proc/cpuinfo").read_text())
    size = int(memory[1]) // 1000 if memory else "?"
    busy = " (busy: trust ratios only)" if load > 0.5 * (os.cpu_count() or 1) else ""
    return [
        f"{time.strftime('%F %T')}, Cowshed {revision.stdout.strip()}, Python {platform.python_version()}",
        f"Linux {platform.release()}, {os.cpu_count()} × {model[1] if model else platform.machine()}, {size} MB",
        f"load {load:.2f} when it began{busy}",
        f"our store on a fresh ext4 on a loop device; {'; '.join(versions) or 'no peer'}",
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--peer",
        action="append",
        default=[],
        metavar="NAME[=COMMAND]",
        help="podman, docker or ctr (containerd), perhaps with options, or none; default: those in PATH",
    )
    parser.add_argument(
        "--inside", type=int, default=0, metavar="PID", help="a process whose mount namespace the peers live in"
    )
    parser.add_argument("--env", action="append", default=[], metavar="NAME=VALUE", help="for the peers")
    parser.add_argument(
        "--registry",
        default="",
        metavar="HOST:PORT",
        help="a registry to use; images bench/* that it lacks are pushed. Default: one of our own",
    )
    parser.add_argument(
        "--work", default="/tmp/cowshed-bench", help="a folder to be made, for our disk image and registry"
    )
    parser.add_argument("--rounds", type=float, default=1.0, help="multiplies the number of runs of each row")
    parser.add_argument("--quick", action="store_true", help="few runs: --rounds 0.4")
    parser.add_argument("--only", default="", help=f"some groups, with commas: {' '.join(GROUPS)}")
    parser.add_argument("--out", default="", metavar="PATH", help="write PATH.md and PATH.json as well")
    said = parser.parse_args()
    load = os.getloadavg()[0]
    for name in ("PYTHONDONTWRITEBYTECODE", "PYTHONUNBUFFERED"):
        os.environ.pop(name, None)
    surroundings = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME": "/root"}
    surroundings |= dict(entry.split("=", 1) for entry in said.env)
    names = [] if said.peer == ["none"] else said.peer or list(KNOWN)
    peers: dict[str, Engine] = {}
    theirs, mine = (
        Runner(said.inside, surroundings),
        Runner(),
    )  # while this is small: they are forked, and measure memory
    for entry in names:
        kind, _, command = entry.partition("=")
        words = shlex.split(command) or [kind]
        there = theirs(["sh", "-c", f"command -v {shlex.quote(words[0])}"], check=False)["codes"] == [0]
        if there:
            name = "containerd" if kind == "ctr" else kind
            peers[name] = KNOWN[kind](name, words, theirs)
        elif said.peer:
            parser.error(f"there is no {words[0]}")
    work = os.path.abspath(said.work)
    groups = [group for group in GROUPS if not said.only or group in said.only.split(",")]
    needed = list(dict.fromkeys(name for group in groups for name in GROUPS[group]))
    with place(work), images(said.registry, f"{work}/var/registry", needed) as registry:
        ours = Engine("cowshed", [str(COMMAND), "--root", f"{work}/var/store", "--run-root", f"{work}/run"], mine)
        bench = Bench(ours, peers, registry, work, 0.4 if said.quick else said.rounds)
        described = head(peers, load)
        try:
            for group in groups:
                try:
                    getattr(bench, group)()
                except (Failed, OSError, subprocess.CalledProcessError) as error:
                    bench.failures.append(f"{group}: {' '.join(str(error).split())}")
        finally:
            bench.close()
        ours.runner.close()
    theirs.close()
    result = {
        "version": 1, "head": described, "rows": bench.rows(), "others": bench.samples, "failures": bench.failures,
        "seconds": round(time.time() - bench.started),
    }  # fmt: skip
    shown = [row for row in result["rows"] if row["ours"] is not None or not said.only]
    text = table.markdown(shown, described, bench.failures)
    if said.out:
        Path(f"{said.out}.md").write_text(text)
        Path(f"{said.out}.json").write_text(json.dumps(result, indent=1) + "\n")
    print(text)


if __name__ == "__main__":
    if "--no-namespace" not in sys.argv:
        words = [sys.executable, os.path.abspath(__file__), "--no-namespace", *sys.argv[1:]]
        os.execvp("unshare", ["unshare", "--mount", "--propagation", "private", *words])
    sys.argv.remove("--no-namespace")
    main()
