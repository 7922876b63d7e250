"""`tests/vm/build` and `tests/vm/run`."""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

from cowshed_vm import guest, kernel, programs, root, trees
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


def main(command: Callable[[list[str]], int]) -> None:
    try:
        sys.exit(command(sys.argv[1:]))
    except (VmError, OSError) as error:
        print(f"vm: {error}", file=sys.stderr)
        sys.exit(FAILED)
