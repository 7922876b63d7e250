"""The log that callers read their error from: docker, containerd and podman take the last line of level error."""

from __future__ import annotations

import os
import sys
from time import gmtime, strftime

from cowshed_runtime.command.errors import CommandError
from cowshed_runtime.fastjson import dumps

_BARE = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-._/@^+")


class Log:
    """Lines in logrus' two formats, to a file or stderr."""

    def __init__(self) -> None:
        self.fd, self.json, self.debugs = 2, False, False

    def choose(self, path: str, form: str, *, debug: bool) -> None:
        """OSError if the file cannot be opened; CommandError for an unknown format."""
        if form not in ("", "text", "json"):
            raise CommandError(f"invalid log-format: {form}")
        self.json, self.debugs = form == "json", debug
        if path:
            fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
            if fd < 3:  # 0-2 of the caller were closed: they are the container's
                raise CommandError("standard input, output and error have to be open")
            self.fd = fd

    def write(self, level: str, text: str) -> None:
        time = strftime("%Y-%m-%dT%H:%M:%SZ", gmtime())
        if self.json:
            line = dumps({"level": level, "msg": text, "time": time})
        else:
            said = text if text and set(text) <= _BARE else _quoted(text)
            line = f'time="{time}" level={level} msg={said}'
        try:
            os.write(self.fd, f"{line}\n".encode(errors="replace"))
        except OSError:
            return  # a full disk, or a reader that has gone: nobody can be told

    def debug(self, text: str) -> None:
        if self.debugs:
            self.write("debug", text)

    def warning(self, text: str) -> None:
        self.write("warning", text)

    def error(self, text: str) -> None:
        """In the log, and on stderr for whoever reads only that."""
        self.write("error", text)
        if self.fd != 2:
            try:
                sys.stderr.write(f"{text}\n")
            except OSError:
                return


def _quoted(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n").replace("\t", "\\t")
    return f'"{escaped}"'


log = Log()
