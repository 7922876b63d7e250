"""Namespaces that others made, by path (config-linux.md, Namespaces)."""

from __future__ import annotations

import os

from cowshed_linux import namespaces, process
from cowshed_runtime.errors import LaunchError
from cowshed_runtime.plan import NAMESPACES

TYPE_CHECKING = False
if TYPE_CHECKING:
    from cowshed_runtime.plan import Plan


class Joined:
    """Descriptors of the namespaces that a plan joins, opened where their paths can be seen.

    early: (kind, descriptor) of those that must be entered before the container's first process is cloned; late: after.
    A process cannot change its pid namespace, only that of its children. And what a user namespace is to own must be
    made in it, so with one all others are entered first: by root before he enters it and loses his rights, by anybody
    else after it, which gives him some.
    """

    def __init__(self, plan: Plan) -> None:
        self.early: list[tuple[str, int]] = []
        self.late: list[tuple[str, int]] = []
        self.mount = -1
        try:
            for kind, path in plan.join:
                fd = _open(kind, path)
                if kind == "mount":
                    self.mount = fd  # last of all: from then on names mean what others say
                elif kind == "user" and namespaces.is_own(fd, process.CLONE_NEWUSER):
                    os.close(fd)  # setns(2) refuses that
                elif kind == "pid" or plan.user_namespace:
                    self.early.append((kind, fd))
                else:
                    self.late.append((kind, fd))
        except BaseException:
            self.close()
            raise
        if os.geteuid():
            self.early.sort(key=lambda entry: entry[0] != "user")

    def descriptors(self) -> list[int]:
        """Everything that is open."""
        return [fd for _, fd in (*self.early, *self.late)] + ([self.mount] if self.mount >= 0 else [])

    def close(self) -> None:
        for fd in self.descriptors():
            os.close(fd)
        self.early, self.late, self.mount = [], [], -1


def _open(kind: str, path: str) -> int:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        text = f"the {kind} namespace {path} cannot be opened: {os.strerror(error.errno or 0)}"
        raise LaunchError("namespaces", error.errno or 0, text) from None
    try:
        there = namespaces.kind(fd)
    except OSError:
        there = 0
    if there != NAMESPACES[kind]:
        os.close(fd)
        names = [name for name, flag in NAMESPACES.items() if flag == there]
        text = f"{path} is no {kind} namespace" + (f" but a {names[0]} namespace" if names else "")
        raise LaunchError("namespaces", 22, text)
    return fd


def enter(kind: str, fd: int) -> None:
    """setns(2). LaunchError says which."""
    try:
        process.setns(fd, NAMESPACES[kind])
    except OSError as error:
        text = f"the {kind} namespace cannot be joined: {os.strerror(error.errno or 0)}"
        raise LaunchError("namespaces", error.errno or 0, text) from None
