"""Boot a guest, run one command in it, bring back its exit status and results."""

from __future__ import annotations

import contextlib
import fcntl
import io
import os
import select
import shlex
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from cowshed_vm import ext4
from cowshed_vm.cache import Cache
from cowshed_vm.errors import GuestDied
from cowshed_vm.kernel import Kernel
from cowshed_vm.programs import find, started

RESULTS_SIZE = 256 << 20
DISK_SIZE = 4 << 30  # of /tmp, and of the empty disk; both files have holes
GRACE = 60.0  # seconds for booting and reporting, beside the command's own time
TIMED_OUT = 124  # as timeout(1) has it
SLOWDOWN = 20  # how much longer Python takes under TCG: measured 10 to 20 times
PYTEST_TIMEOUT = 300  # seconds for a test on a host, as in pyproject.toml


@dataclass(frozen=True)
class Job:
    command: Sequence[str]
    tree: Path  # of the project; the guest has it at the same path
    source: Path  # disks of the project
    environment: Path
    variables: Mapping[str, str] = field(default_factory=dict)
    timeout: float = 3600.0  # seconds for the command
    memory: int = 2048  # MB
    cpus: int = 1  # a second one makes a single process slower
    append: str = ""  # kernel parameters

    def script(self) -> bytes:
        """What the guest's second stage runs."""
        tree = shlex.quote(str(self.tree))
        variables = {
            "PATH": f"{self.tree}/.venv/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            "COWSHED_TEST_SLOWDOWN": str(SLOWDOWN),
            "PYTEST_TIMEOUT": str(PYTEST_TIMEOUT * SLOWDOWN),
            **self.variables,
        }
        lines = [
            'stop() { echo "guest: cannot mount $1"; exit 125; }',
            f"mkdir -p /results /run/source {tree} && mount --bind /run/results /results || stop /results",
            "mount -t tmpfs tmpfs /run/source && cd /run/source && mkdir lower upper work || stop tmpfs",
            "mount -t ext4 -o ro /dev/vdf lower || stop source",
            f"mount -t overlay -o lowerdir=lower,upperdir=upper,workdir=work overlay {tree} || stop source",
            f"mount -t ext4 -o ro /dev/vdg {tree}/.venv || stop .venv",
            # Some tests are a plain user's, who must reach the tree wherever it is.
            f'at={tree}; while [ "$at" != / ]; do chmod a+rx "$at"; at=$(dirname "$at"); done',
            *(f"export {name}={shlex.quote(value)}" for name, value in variables.items()),
            f"cd {tree}",
            f"exec timeout -k 10 {self.timeout:g} {shlex.join(self.command)}",
        ]
        return "".join(f"{line}\n" for line in lines).encode()


def run(cache: Cache, kernel: Kernel, root: Path, job: Job, results: Path | None = None) -> int:
    """The command's exit status, 124 when it took too long. What it wrote to /results is brought to results.

    The guest's console goes to standard output. Raises GuestDied: it ended without a report.
    """
    with _folder(cache) as folder:
        exchange = folder / "exchange"
        _write_job(exchange, job.script())
        ext4.empty(folder / "tmp", DISK_SIZE)
        with open(folder / "empty", "wb") as file:
            file.truncate(DISK_SIZE)
        read_only = [root, kernel.modules]
        disks = [(disk, True) for disk in read_only]
        disks += [(exchange, False), (folder / "tmp", False), (folder / "empty", False)]
        disks += [(job.source, True), (job.environment, True)]
        ended, last = _boot(_command(kernel, disks, job), job.timeout + GRACE)
        status = _read_results(exchange, results)
        if status is not None:
            return status
        if ended is None:
            print(f"vm: the guest hangs: ended after {job.timeout + GRACE:g} s", file=sys.stderr)
            return TIMED_OUT
        raise GuestDied(
            "the guest's kernel panicked"
            if b"Kernel panic" in last
            else f"the guest did not report, QEMU ended with {ended}"
        )


@contextlib.contextmanager
def _folder(cache: Cache) -> Iterator[Path]:
    """A directory for this run's disks. Those of runs that were killed are thrown away first."""
    folder = cache.path / "runs"
    with contextlib.ExitStack() as stack:
        with cache.lock("runs"):
            folder.mkdir(parents=True, exist_ok=True)
            for old in folder.iterdir():
                _remove_if_dead(old)
            made = Path(tempfile.mkdtemp(dir=folder, prefix=f"{os.getpid()}-"))
            held = stack.enter_context(open(made / "lock", "w"))
            fcntl.flock(held, fcntl.LOCK_EX)
        try:
            yield made
        finally:
            shutil.rmtree(made)


def _remove_if_dead(run: Path) -> None:
    try:
        with open(run / "lock") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(run)
    except BlockingIOError:
        return  # it runs
    except FileNotFoundError:
        shutil.rmtree(run, ignore_errors=True)  # killed before it had a lock, or ends at this moment


def _write_job(path: Path, script: bytes) -> None:
    with tarfile.open(path, "w") as archive:
        member = tarfile.TarInfo("job")
        member.size = len(script)
        archive.addfile(member, io.BytesIO(script))
    os.truncate(path, RESULTS_SIZE)


def _read_results(path: Path, target: Path | None) -> int | None:
    """The exit status that the guest reported, or None if it did not."""
    try:
        with tarfile.open(path) as archive:
            status = archive.extractfile("./status")
            if status is None:
                return None
            if target is not None:
                target.mkdir(parents=True, exist_ok=True)
                if hasattr(tarfile, "data_filter"):
                    archive.extraction_filter = tarfile.data_filter
                archive.extractall(target)
            return int(status.read())
    except (tarfile.TarError, KeyError, ValueError):
        return None


def _command(kernel: Kernel, disks: Sequence[tuple[Path, bool]], job: Job) -> list[str]:
    qemu = find("qemu-system-x86_64") or "qemu-system-x86_64"
    words = [
        # Should this process be killed, QEMU goes with it.
        find("setpriv") or "setpriv", "--pdeathsig", "KILL", qemu,
        "-nodefaults", "-no-user-config", "-display", "none", "-serial", "stdio", "-no-reboot",
        # Never KVM: where /dev/kvm opens, it may still not work. q35 has a clock that a loaded host does not upset.
        "-accel", "tcg,thread=multi", "-M", "q35", "-cpu", "max,-cx16",
        "-smp", str(job.cpus), "-m", str(job.memory),
        "-kernel", str(kernel.image), "-initrd", str(kernel.initrd),
        "-append", f"console=ttyS0 quiet loglevel=2 panic=-1 no_timer_check {job.append}",
    ]  # fmt: skip
    for number, (disk, read_only) in enumerate(disks):
        name = str(disk).replace(",", ",,")
        # unsafe: a disk lives as long as its guest; nobody waits for it to reach the host's.
        mode = f"readonly={'on' if read_only else 'off'},cache=unsafe,discard=unmap"
        words += ["-drive", f"if=none,id=d{number},file={name},format=raw,{mode}"]
        words += ["-device", f"virtio-blk-pci,drive=d{number}"]
    return words


def _boot(command: list[str], seconds: float) -> tuple[int | None, bytes]:
    """QEMU's exit status (None: it was ended after that time) and the last that the console said."""
    last, until = b"", time.monotonic() + seconds
    with started(command, stdout=subprocess.PIPE) as qemu:
        assert qemu.stdout is not None
        while True:
            ready, _, _ = select.select([qemu.stdout], [], [], max(0.0, until - time.monotonic()))
            if not ready:
                return None, last
            said = os.read(qemu.stdout.fileno(), 1 << 16)
            if not said:
                return qemu.wait(), last
            last = (last + said)[-1 << 16 :]
            sys.stdout.buffer.write(said.replace(b"\r\n", b"\n"))
            sys.stdout.buffer.flush()
