"""Real registries on loopback, Debian's docker-registry and our own, and pushing to them."""

from __future__ import annotations

import http.client
import os
import signal
import socket
import subprocess
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from types import TracebackType

    from cowshed_testing.images import Image

CONFIG = """\
version: 0.1
log: {{level: error, accesslog: {{disabled: true}}}}
storage:
  filesystem: {{rootdirectory: {root}}}
  delete: {{enabled: true}}
  cache: {{blobdescriptor: inmemory}}
http: {{addr: "{address}", secret: x}}
"""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Remote:
    """A registry at an address."""

    def __init__(self, address: str) -> None:
        self.address = address

    def _request(self, method: str, path: str, body: bytes | None = None, **headers: str) -> tuple[int, dict[str, str]]:
        connection = http.client.HTTPConnection(self.address, timeout=60)
        try:
            connection.request(method, path, body, {k.replace("_", "-"): v for k, v in headers.items()})
            answer = connection.getresponse()
            answer.read()
            return answer.status, {k.lower(): v for k, v in answer.getheaders()}
        finally:
            connection.close()

    def push(self, image: Image, name: str, tag: str = "latest") -> str:
        """Upload an image; its full reference."""
        for digest, data in image.blobs.items():
            status, headers = self._request("POST", f"/v2/{name}/blobs/uploads/", b"")
            assert status == 202, status
            location = headers["location"].removeprefix(f"http://{self.address}")
            separator = "&" if "?" in location else "?"
            status, _ = self._request("PUT", f"{location}{separator}digest={digest}", data)
            assert status == 201, status
        status, _ = self._request(
            "PUT",
            f"/v2/{name}/manifests/{tag}",
            image.manifest,
            Content_Type="application/vnd.oci.image.manifest.v1+json",
        )
        assert status == 201, status
        return f"{self.address}/{name}:{tag}"


class Ours(Remote):
    """`cowshed registry serve` on 127.0.0.1, its content in `folder`; a context manager."""

    def __init__(self, command: str, folder: str, *options: str) -> None:
        self.folder = folder
        self.process = subprocess.Popen(
            [command, "registry", "serve", folder, "--listen", "127.0.0.1:0", "--log", "none", *options],
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert self.process.stdout is not None
        said = self.process.stdout.readline()  # it is listening when it has said so
        if not said:
            self.close()
            raise RuntimeError(f"cowshed registry serve ended with status {self.process.returncode}")
        super().__init__(said.split()[2].partition("://")[2])

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        self.process.wait(60)
        if self.process.stdout is not None:
            self.process.stdout.close()

    def __enter__(self) -> Ours:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class Registry(Remote):
    """docker-registry on 127.0.0.1, its data under `folder`; a context manager."""

    def __init__(self, folder: str) -> None:
        super().__init__(f"127.0.0.1:{free_port()}")
        os.makedirs(folder, exist_ok=True)
        settings = f"{folder}/registry.yml"
        with open(settings, "w") as f:
            f.write(CONFIG.format(root=f"{folder}/data", address=self.address))
        self._log = open(f"{folder}/registry.log", "wb")
        self._process = subprocess.Popen(
            ["docker-registry", "serve", settings], stdin=subprocess.DEVNULL, stdout=self._log, stderr=self._log
        )
        deadline = time.monotonic() + 20
        while True:
            try:
                self._request("GET", "/v2/")
                return
            except OSError:
                if self._process.poll() is not None or time.monotonic() > deadline:
                    self.close()
                    raise RuntimeError(f"docker-registry does not start; see {folder}/registry.log") from None
                time.sleep(0.05)

    def close(self) -> None:
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
        self._process.wait(10)
        self._log.close()

    def __enter__(self) -> Registry:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
