"""The log: one JSON object a line, written with one call, so that lines of threads and processes do not mix."""

from __future__ import annotations

import json
import os
import time


class Journal:
    """Writes to a descriptor; to nothing if it is -1. Safe for several threads."""

    def __init__(self, fd: int, *, requests: bool = True) -> None:
        self._fd, self._requests = fd, requests

    def request(
        self,
        peer: str,
        user: str,
        method: str,
        target: str,
        status: int,
        received: int,
        sent: int,
        began: float,
        why: str,
    ) -> None:
        """An answered request. received: bytes that its body has, -1 for chunks; began: of the monotonic clock."""
        if not self._requests:
            return
        line = {
            "level": "info", "event": "request", "peer": peer, "user": user or "-", "method": method,
            "target": target, "status": status, "received": received, "sent": sent,
            "seconds": round(time.monotonic() - began, 4),
        }  # fmt: skip
        if why:
            line["error"] = why
        self._write(line)

    def event(self, name: str, **facts: object) -> None:
        self._write({"level": "info", "event": name, **facts})

    def failure(self, text: str) -> None:
        """Something that the operator has to look at."""
        self._write({"level": "error", "event": "failure", "error": text})

    def _write(self, line: dict[str, object]) -> None:
        if self._fd < 0:
            return
        now = time.time()
        stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(now)) + f".{int(now * 1000) % 1000:03}Z"
        try:
            os.write(self._fd, json.dumps({"time": stamp, **line}).encode() + b"\n")
        except OSError:
            self._fd = -1  # whoever read the log is gone: that is no reason to stop serving
