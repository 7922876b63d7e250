"""The engine's public command line on the driver under test, and images for it."""

from __future__ import annotations

import contextlib
import glob
import hashlib
import io
import json
import os
import platform
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator

from cowshed_conformance import marks, standins
from cowshed_conformance.archive import member, pack
from cowshed_conformance.marks import SLOWDOWN
from cowshed_conformance.target import Target

_MAIN = "from cowshed.cli.main import main; main()"
_SHELL = ("/bin/busybox", "/usr/bin/busybox")
_MACHINES = {"x86_64": "amd64", "aarch64": "arm64", "riscv64": "riscv64", "ppc64le": "ppc64le", "s390x": "s390x"}


class CommandLine:
    """`cowshed` on one store. A call returns the finished process; `ok` insists on a status and gives the output."""

    def __init__(self, target: Target, place: str) -> None:
        if not target.installed:
            marks.skip("plan", f"{target.name} is no entry point: commands find drivers by their names")
        if standins.used is not None:
            marks.skip("stand-in", "commands have nothing but the kernel to mount for them")
        self.name, self.root, self.run_root = target.plugin.name, f"{place}/store", f"{place}.run"
        chosen = [f"{key}={value}" for key, value in target.given.items()]
        at = target.at(self.root)
        chosen += [f"{key}={at[key]}" for key in at if at[key] != target.options[key]]
        self.words = [
            sys.executable,
            "-c",
            standins.statement() + _MAIN,
            "--root",
            self.root,
            "--run-root",
            self.run_root,
        ]
        self.given = dict(pair.split("=", 1) for pair in chosen)
        self.words += ["--config", os.devnull, "--driver", self.name]
        self.words += [word for pair in chosen for word in ("--driver-option", pair)]
        self.env = {key: value for key, value in os.environ.items() if not key.startswith("COWSHED_")}

    def __call__(self, *words: str, feed: bytes = b"", fault: str = "") -> subprocess.CompletedProcess[bytes]:
        """fault: as COWSHED_FAULT says it (`cowshed.layers.faults`)."""
        env = {**self.env, "COWSHED_FAULT": fault} if fault else self.env
        return subprocess.run([*self.words, *words], input=feed, capture_output=True, env=env, timeout=60 * SLOWDOWN)

    def raw(self, *words: str, feed: bytes = b"", status: int = 0, fault: str = "") -> bytes:
        done = self(*words, feed=feed, fault=fault)
        said = f"{' '.join(words)} ended with {done.returncode}: {done.stderr.decode(errors='replace')[-1000:]}"
        assert done.returncode == status, said
        assert b"Traceback" not in done.stderr, said
        return done.stdout

    def ok(self, *words: str, feed: bytes = b"", status: int = 0, fault: str = "") -> str:
        return self.raw(*words, feed=feed, status=status, fault=fault).decode(errors="surrogateescape")

    def files(self, container: str, path: str = "/") -> dict[str, tarfile.TarInfo]:
        """What a container has, by name without the slash before it."""
        data = io.BytesIO(self.raw("cp", f"{container}:{path}", "-"))
        with tarfile.open(fileobj=data, errors="surrogateescape") as opened:
            return {info.name.removeprefix("./").strip("/"): info for info in opened}

    def text(self, container: str, path: str) -> bytes:
        with tarfile.open(fileobj=io.BytesIO(self.raw("cp", f"{container}:{path}", "-"))) as opened:
            found = opened.extractfile(opened.getmembers()[0])
            assert found is not None, f"{path} is no file"
            return found.read()

    def close(self) -> None:
        """Remove every container, and end the processes of this store: its run directory is in their command line."""
        for name in self("ps", "-aq", "--no-trunc").stdout.decode().split():
            self("rm", "-f", name)
        until = time.monotonic() + 10
        number = signal.SIGTERM
        while pids := self._processes():
            for pid in pids:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, number)
            if time.monotonic() > until:
                number = signal.SIGKILL
            time.sleep(0.02)

    def _processes(self) -> list[int]:
        found, mark = [], self.run_root.encode()
        for path in glob.glob("/proc/[0-9]*/cmdline"):
            try:
                with open(path, "rb") as file:
                    if mark in file.read():
                        found.append(int(path.split("/")[2]))
            except OSError:
                continue  # it has ended
        return found


@contextlib.contextmanager
def command_line(target: Target, place: str) -> Iterator[CommandLine]:
    made = CommandLine(target, place)
    try:
        yield made
    finally:
        made.close()


def shell() -> bytes:
    """The archive of a layer with a shell; the case is skipped where no static one is installed."""
    for path in _SHELL:
        if os.path.exists(path):
            with open(path, "rb") as file:
                program = file.read()
            if b"/ld-linux" not in program and b"/ld-musl" not in program:
                break
    else:
        marks.skip("tool", "no static busybox is installed")
    folders = [member(name, kind=tarfile.DIRTYPE, mode=0o755) for name in ("bin", "dev", "etc", "proc", "sys", "tmp")]
    applets = ("sh", "cat", "echo", "ls", "rm", "sleep", "true", "chmod", "mkdir", "ln", "dd", "mv")
    links = [member(f"bin/{name}", kind=tarfile.SYMTYPE, link="busybox") for name in applets]
    return pack([*folders, member("bin/busybox", program, mode=0o755), *links])


def image(name: str, *layers: bytes) -> bytes:
    """An OCI image layout with one image, as an archive."""
    blobs: dict[str, bytes] = {}

    def blob(data: bytes, kind: str) -> dict[str, object]:
        digest = hashlib.sha256(data).hexdigest()
        blobs[digest] = data
        return {"mediaType": f"application/vnd.oci.image.{kind}", "digest": f"sha256:{digest}", "size": len(data)}

    described = [blob(layer, "layer.v1.tar") for layer in layers]
    config = {
        "architecture": _MACHINES.get(platform.machine(), platform.machine()),
        "os": "linux",
        "config": {"Env": ["PATH=/bin"], "Cmd": ["sh"]},
        "rootfs": {"type": "layers", "diff_ids": [layer["digest"] for layer in described]},
    }
    manifest = {
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": blob(json.dumps(config).encode(), "config.v1+json"),
        "layers": described,
    }
    top = blob(json.dumps(manifest).encode(), "manifest.v1+json")
    top["annotations"] = {"org.opencontainers.image.ref.name": name}
    index = {"schemaVersion": 2, "manifests": [top]}
    return pack(
        [
            member("oci-layout", b'{"imageLayoutVersion": "1.0.0"}'),
            member("index.json", json.dumps(index).encode()),
            *[member(f"blobs/sha256/{digest}", data) for digest, data in blobs.items()],
        ]
    )
