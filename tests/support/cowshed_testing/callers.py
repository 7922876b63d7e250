"""The command `cowshed-runtime` as podman, docker and containerd call it."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

COMMAND = Path(sys.executable).parent / "cowshed-runtime"


class Caller:
    """A bundle, a state directory, and the command on both. config may be changed before a container is made."""

    def __init__(self, bundle: Path, config: dict[str, Any]) -> None:
        self.bundle, self.config = bundle, config
        self.root = bundle / "state"
        self.config["root"] = {"path": "rootfs", "readonly": False}
        self.said: list[Any] = []
        self.number = 0

    @property
    def process(self) -> dict[str, Any]:
        return self.config["process"]

    def name(self) -> str:
        """One that no other test uses: control groups are the host's."""
        self.number += 1
        return f"command-{os.getpid()}-{time.monotonic_ns()}-{self.number}"

    def words(self, *words: Any) -> list[str]:
        return [str(word) for word in (COMMAND, "--root", self.root, *words)]

    def write(self) -> None:
        (self.bundle / "config.json").write_text(json.dumps(self.config))

    def call(self, *words: Any, **options: Any) -> subprocess.CompletedProcess[str]:
        """Run the command to its end; its streams are files, which a container that stays may keep."""
        streams = [open(self.bundle / f"{kind}.{len(self.said)}", "w+") for kind in ("out", "err")]
        self.said.append(words)
        options = {"stdin": subprocess.DEVNULL, "timeout": 60, "cwd": self.bundle, **options}
        try:
            done = subprocess.run(self.words(*words), stdout=streams[0], stderr=streams[1], check=False, **options)
            texts = []
            for stream in streams:
                stream.seek(0)
                texts.append(stream.read())
        finally:
            for stream in streams:
                stream.close()
        return subprocess.CompletedProcess(words, done.returncode, *texts)

    def ok(self, *words: Any, **options: Any) -> str:
        done = self.call(*words, **options)
        assert done.returncode == 0, (words, done)
        return done.stdout

    def refused(self, *words: Any, status: int = 1, **options: Any) -> str:
        """The message of a command that fails, which is one line."""
        done = self.call(*words, **options)
        assert done.returncode == status, (words, done)
        assert len(done.stderr.splitlines()) == 1, done
        return done.stderr

    def create(self, *args: str, options: tuple[Any, ...] = (), **more: Any) -> str:
        if args:
            self.process["args"] = list(args)
        self.write()
        name = self.name()
        self.ok("create", "--bundle", self.bundle, *options, name, **more)
        return name

    def run(self, *args: str, options: tuple[Any, ...] = (), **more: Any) -> subprocess.CompletedProcess[str]:
        if args:
            self.process["args"] = list(args)
        self.write()
        return self.call("run", "--bundle", self.bundle, *options, self.name(), **more)

    def state(self, name: str) -> dict[str, Any]:
        return json.loads(self.ok("state", name))

    def wait(self, name: str, status: str) -> dict[str, Any]:
        """Until the container's state is this."""
        until = time.monotonic() + 30
        while (found := self.state(name))["status"] != status:
            assert time.monotonic() < until, found
            time.sleep(0.01)
        return found

    def left(self) -> list[str]:
        """What the state directory holds of containers."""
        return sorted(set(os.listdir(self.root)) - {".cache"}) if self.root.exists() else []

    def close(self) -> None:
        for name in self.left():
            if not name.startswith("."):
                self.ok("delete", "--force", name)


class Listening:
    """A socket that is to be sent one descriptor, as --console-socket and --pidfd-socket are."""

    def __init__(self, path: Path) -> None:
        self.path, self.socket = path, socket.socket(socket.AF_UNIX)
        self.socket.bind(str(path))
        self.socket.listen()
        self.socket.settimeout(30)

    def receive(self) -> int:
        connection, _ = self.socket.accept()
        connection.settimeout(30)
        _, descriptors, _, _ = socket.recv_fds(connection, 4096, 1)
        connection.close()
        self.socket.close()
        return descriptors[0]
