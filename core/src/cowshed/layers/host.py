"""The engine's side of `cowshed.storage.api.Host`: all that a driver does outside its own root goes through here."""

from __future__ import annotations

import os

from cowshed import log
from cowshed.layers import faults
from cowshed.layers.mounting import mounted
from cowshed.storage.errors import Cancelled, ToolFailed
from cowshed_linux import files

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Sequence
    from contextlib import AbstractContextManager
    from typing import TypeVar

    from cowshed.storage import api
    from cowshed.storage.kit.counting import Counter

    T = TypeVar("T")


def make(counter: Counter | None = None) -> api.Host:
    """The host of this command: one that counts what it does, and writes it down if --trace says so."""
    host: api.Host = EngineHost()
    if counter is not None:
        from cowshed.storage.kit.counting import Counted

        host = Counted(host, counter)
    return host if log.trace is None else log.trace.host(host)


class EngineHost:
    """Runs tools, mounts, syncs and counts steps for drivers. `cancel()` makes the next step raise Cancelled."""

    def __init__(self, report: Callable[[str, int, int | None], None] | None = None) -> None:
        self._report = report
        self._cancelled = False

    def cancel(self) -> None:
        self._cancelled = True

    def run(
        self,
        argv: Sequence[str],
        *,
        timeout: float,
        ok: Collection[int] = (0,),
        mounts: Sequence[tuple[api.MountPlan, str]] = (),
    ) -> api.CompletedRun:
        """Run a tool with LC_ALL=C; with mounts, in a private mount namespace in which they are mounted.

        Raises ToolFailed if the tool is missing, takes longer than timeout seconds, or ends with a status not in ok.
        """
        import subprocess

        from cowshed.storage.api import CompletedRun

        def enter() -> None:
            from cowshed.layers.mounting import detached
            from cowshed_linux import mount, process

            process.unshare(process.CLONE_NEWNS)
            mount.mount(None, "/", None, mount.REC | mount.PRIVATE)
            for plan, target in mounts:
                mount.attach(detached(plan), target)

        environment = {**os.environ, "LC_ALL": "C"}
        log.debug(f"runs {' '.join(argv)}")
        try:
            done = subprocess.run(
                list(argv),
                env=environment,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                timeout=timeout,
                preexec_fn=enter if mounts else None,
            )
        except FileNotFoundError:
            raise ToolFailed(f"{argv[0]} is not installed", remedy=f"install {argv[0]}") from None
        except subprocess.TimeoutExpired:
            raise ToolFailed(f"{argv[0]} did not end within {timeout:g} s") from None
        if done.returncode not in ok:
            said = done.stderr.decode(errors="replace").strip().splitlines()
            raise ToolFailed(
                f"{' '.join(argv)} ended with status {done.returncode}: {said[-1] if said else 'no message'}"
            )
        return CompletedRun(tuple(argv), done.returncode, done.stdout, done.stderr)

    def call(self, name: str, function: Callable[..., T], *arguments: object, changes: bool = True) -> T:
        if changes:
            self.step(f"call.{name}")
        return function(*arguments)

    def library(self, name: str, load: Callable[[], T]) -> T:
        return load()

    def mounted(self, plan: api.MountPlan) -> AbstractContextManager[api.MountedTree]:
        return mounted(plan)

    def sync(self, fd: int) -> None:
        files.syncfs(fd)

    def step(self, name: str) -> None:
        log.debug(f"driver step {name}")
        faults.step(name)
        if self._cancelled:
            raise Cancelled(f"cancelled at {name}")

    def progress(self, text: str, done: int, total: int | None) -> None:
        if self._report is not None:
            self._report(text, done, total)
        if self._cancelled:
            raise Cancelled(f"cancelled: {text}")
