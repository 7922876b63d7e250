"""`tests/vm/build`, `tests/vm/run` and `tests/vm/guests`."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from cowshed_vm import guest, kernel, plan, programs, root, trees
from cowshed_vm.archive import Archive
from cowshed_vm.cache import Cache
from cowshed_vm.errors import NotHere, VmError

TOP = Path(__file__).absolute().parents[3]
SERIES = ("6.1", "6.12")
SPACE = 3500  # MB that a build from nothing takes at most
FAILED = 125


def check_machine() -> None:
    """Raises NotHere: guests can neither be built nor run on this machine."""
    if os.uname().machine != "x86_64":
        raise NotHere(f"guests are amd64, this machine is {os.uname().machine}")
    if os.geteuid() != 0:
        raise NotHere("building a guest needs root (mmdebstrap)")
    programs.require(programs.BUILD | programs.RUN)


def ready(cache: Cache, wanted: str) -> tuple[kernel.Kernel, Path]:
    """The kernel and the root disk; what is missing of them is built."""
    check_machine()
    cache.require_space(SPACE if not (cache.path / "root").is_dir() else 500)
    archive = Archive(cache)
    disk = root.disk(cache, archive)
    found = kernel.get(cache, archive, wanted)
    for kind in ("root", "kernels", "zfs"):
        cache.prune(kind)
    return found, disk


def build(words: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="tests/vm/build", description="Build guests, or find that they are built.")
    parser.add_argument("kernel", nargs="*", default=SERIES, help="a series of Debian's, a .deb or a directory")
    given = parser.parse_args(words)
    cache = Cache.default()
    for wanted in given.kernel:
        began, used = time.monotonic(), sum(os.times()[:4])
        found, _ = ready(cache, wanted)
        wall, cpu = time.monotonic() - began, sum(os.times()[:4]) - used
        print(f"guest with kernel {found.release}: ready after {wall:.1f} s ({cpu:.1f} s of CPU)", flush=True)
    return 0


def run(words: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="tests/vm/run",
        description="Run a command as root in a guest, with this working tree and its .venv at their paths. "
        "What it writes to /results comes back. The exit status is the command's; 124: too late; 125: no report.",
    )
    default = os.environ.get("COWSHED_VM_KERNEL") or SERIES[0]
    parser.add_argument("--kernel", default=default, metavar="WHICH", help="6.1 (with zfs), 6.12, a .deb, a directory")
    parser.add_argument("--append", default="", metavar="WORDS", help="kernel parameters")
    parser.add_argument("--timeout", type=float, default=3600, metavar="SECONDS", help="for the command (3600)")
    parser.add_argument("--memory", type=int, default=2048, metavar="MB", help="of the guest (2048)")
    parser.add_argument("--cpus", type=int, default=1, metavar="N", help="of the guest (1)")
    parser.add_argument("--env", action="append", default=[], metavar="K=V", help="environment (repeatable)")
    parser.add_argument("--results", type=Path, metavar="DIR", help="where to (build/vm)", default=TOP / "build/vm")
    parser.add_argument("command", nargs="+")
    given = parser.parse_args(words)
    cache = Cache.default()
    found, disk = ready(cache, given.kernel)
    job = guest.Job(
        command=given.command,
        tree=TOP,
        source=trees.source(cache, TOP),
        environment=trees.environment(cache, TOP / ".venv"),
        variables=dict(pair.partition("=")[::2] for pair in given.env) | {"COWSHED_GUEST": found.release},
        timeout=given.timeout,
        memory=given.memory,
        cpus=given.cpus,
        append=given.append,
    )
    return guest.run(cache, found, disk, job, given.results)


def guests(words: list[str]) -> int:
    """Every plan, or those that are named. The first status that is not 0 is the status of all."""
    plans = {found.name: found for found in plan.plans(whole="--whole" in words)}
    parser = argparse.ArgumentParser(
        prog="tests/vm/guests", description="Build guests and run the project's plans in them."
    )
    parser.add_argument("name", nargs="*", help=f"which of them: {', '.join(plans)} (all)")
    parser.add_argument("--jobs", type=int, default=2, metavar="N", help="guests at a time (2)")
    parser.add_argument("--whole", action="store_true", help="the whole core level of the suite, an hour for a driver")
    parser.add_argument("--not-run", metavar="WHY", help="only say that they are not run")
    given = parser.parse_args(words)
    unknown = sorted(set(given.name) - set(plans))
    if unknown:
        raise VmError(f"no plan {', '.join(unknown)}: there are {', '.join(plans)}")
    wanted = [plans[name] for name in given.name or plans]
    if not given.name and "aufs" not in plans:
        not_run("the suite on aufs", "no Debian kernel has it, and COWSHED_VM_KERNEL names no other")
    try:
        if given.not_run:
            raise NotHere(given.not_run)
        build(sorted({found.kernel for found in wanted} - {""}, reverse=True))
    except NotHere as error:
        not_run("; ".join(found.what for found in wanted), str(error))
        return 0
    with ThreadPoolExecutor(given.jobs) as pool:
        running: list[subprocess.Popen[bytes]] = []
        try:
            statuses = list(pool.map(lambda found: _carry_out(found, running), wanted))
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
            for process in running:
                process.terminate()  # tests/vm/run ends its guest
    return next((status for status in statuses if status), 0)


def not_run(what: str, why: str) -> None:
    """A line for the list of skips at the end of `make test`."""
    print(f"SKIPPED [guest] tests/vm: {what}: {why}", flush=True)


def _carry_out(found: plan.Plan, running: list[subprocess.Popen[bytes]]) -> int:
    results = TOP / "build/vm" / found.name
    results.mkdir(parents=True, exist_ok=True)
    command = ["sh", "-c", found.command()]
    if found.kernel:
        words = ["--kernel", found.kernel, "--timeout", str(found.timeout), "--results", str(results)]
        words += ["--append", found.append] if found.append else []
        command = [sys.executable, str(TOP / "tests/vm/run"), *words, "--", *command]
    began = time.monotonic()
    with open(results / "log", "wb") as log:
        with subprocess.Popen(
            command, cwd=TOP, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT
        ) as process:
            running.append(process)
            status = process.wait()
    said = (results / "log").read_text(errors="replace")
    took = time.monotonic() - began
    # One write: the guests that run beside this one print too.
    print(f"== guest {found.name}: status {status} after {took:.0f} s\n{said}", end="", flush=True)
    return status


def main(command: Callable[[list[str]], int]) -> None:
    try:
        with programs.signals_raise():
            sys.exit(command(sys.argv[1:]))
    except (VmError, OSError) as error:
        print(f"vm: {error}", file=sys.stderr)
        sys.exit(FAILED)
