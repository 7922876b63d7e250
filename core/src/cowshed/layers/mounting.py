"""Executes mount plans: a plan in, one detached mount out.

A detached mount is a descriptor that belongs to no namespace: nothing on the host changes, and closing it (or dying)
unmounts. The runtime attaches it in the container's own namespace; apply, diff and cp work beneath it by descriptor.
"""

from __future__ import annotations

import os

from cowshed import log
from cowshed.storage import api
from cowshed_linux import mount

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

_OPTION = 255  # fsconfig(2) takes a value of at most so many bytes


def counted(plan: api.MountPlan, driver: str) -> int:
    """`detached`, counted as a mount of that driver."""
    from cowshed.layers import metrics
    from cowshed.storage.kit.counting import last

    with metrics.counter(driver).doing("mount", last(plan)):
        return detached(plan)


def detached(plan: api.MountPlan, *, read_only: bool = False, below: Sequence[int] = ()) -> int:
    """Mount a plan; the descriptor of the detached mount of its last step.

    below: detached mounts that count as steps before the first, and stay the caller's.
    Raises OSError with the kernel's own words and the options in the text.
    """
    done = [*below]
    try:
        for step in plan.steps:
            done.append(_execute(step, done) if log.trace is None else log.trace.mount(_execute, step, done))
        tree = done.pop()
        if plan.subpath:
            whole = tree
            try:
                tree = mount.beneath(whole, plan.subpath)
            finally:
                os.close(whole)
        if read_only:
            try:
                mount.set_attributes(tree, mount.ATTR_RDONLY)
            except BaseException:
                os.close(tree)
                raise
        return tree
    finally:
        for fd in done[len(below) :]:
            os.close(fd)


class mounted:
    """`with mounted(plan) as tree:` a MountedTree for this process, gone when the block ends."""

    def __init__(self, plan: api.MountPlan, *, read_only: bool = False) -> None:
        self._plan, self._read_only = plan, read_only

    def __enter__(self) -> api.MountedTree:
        self._fd = detached(self._plan, read_only=self._read_only)
        return api.MountedTree(self._fd, f"/proc/self/fd/{self._fd}")

    def __exit__(self, *_: object) -> None:
        release(self._fd, self._plan)


def release(tree: int, plan: api.MountPlan) -> None:
    """End a mount that `detached` made, and that nobody else uses, by its last descriptor. What of it only the living
    mount knows is written into its branches before; without that, names of one changed file become several files."""
    try:
        branch = settled(plan)
        if branch:
            from cowshed.layers import aufs

            aufs.settle(tree, branch)
    finally:
        os.close(tree)


def settled(plan: api.MountPlan) -> str:
    """The directory into which something is to be written before the plan's mount ends; "" if nothing is."""
    last = plan.steps[-1]
    return last.branches[0] if isinstance(last, api.Aufs) and last.writable else ""


def _execute(step: api.Mount, done: list[int]) -> int:
    if isinstance(step, api.Bind):
        if isinstance(step.source, api.Step):
            tree = mount.beneath(done[step.source.index], step.source.subpath)
        else:
            tree = mount.clone(step.source)
        if step.read_only:
            try:
                mount.set_attributes(tree, mount.ATTR_RDONLY)
            except BaseException:
                os.close(tree)
                raise
        return tree
    if isinstance(step, api.Overlay):
        return _overlay(step, done)
    if isinstance(step, api.FileSystem):
        attributes = mount.ATTR_RDONLY if step.read_only else 0
        opened: list[int] = []
        try:
            source = _short(step.source, opened) if step.source.startswith("/") else step.source
            return mount.file_system(step.fstype, source, step.options, attributes)
        except OSError as error:
            raise OSError(error.errno, f"{error.strerror} ({step.source})") from None
        finally:
            for fd in opened:
                os.close(fd)
    from cowshed.layers import aufs  # not for the others to import

    return aufs.mounted(step)


def _path(source: api.Source, done: list[int]) -> str:
    if isinstance(source, api.Step):
        return f"/proc/self/fd/{done[source.index]}" + (f"/{source.subpath}" if source.subpath else "")
    return source


def _overlay(step: api.Overlay, done: list[int]) -> int:
    opened: list[int] = []
    try:
        lowers = [_short(_path(lower, done), opened) for lower in step.lowers]
        data = [_short(_path(lower, done), opened) for lower in step.data_lowers]
        rest = [*_upper(step, opened), *step.options]
        attributes = mount.ATTR_RDONLY if step.read_only or step.upper is None else 0
        try:
            return mount.file_system("overlay", "cowshed", [*_one_by_one(lowers, data), *rest], attributes)
        except OSError as error:
            # An older kernel takes any option until "create", and then says EINVAL and no more; or until they are more
            # than a page, which may be at any of them.
            said = str(error)
            unknown = "lowerdir+" in said or "Legacy:" in said or ("create" in said and "(kernel:" not in said)
            if error.errno != 22 or data or not unknown:
                raise
        from cowshed.layers import older

        below = [done[lower.index] for lower in step.lowers if isinstance(lower, api.Step)]
        paths = [_path(lower, done) for lower in step.lowers]
        return older.overlay(step, paths, below, read_only=bool(attributes))
    finally:
        for fd in opened:
            os.close(fd)


def _short(path: str, opened: list[int]) -> str:
    """A name of the path that fits in one option. Its last parts stay: the mount table must name the layer."""
    if len(os.fsencode(path)) <= _OPTION:
        return path
    above, kept = path, ""
    while above and len(os.fsencode(kept)) < _OPTION // 2:
        above, _, name = above.rpartition("/")
        kept = f"/{name}{kept}"
    opened.append(os.open(above or "/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC))
    return f"/proc/self/fd/{opened[-1]}{kept}"


def _one_by_one(lowers: list[str], data: list[str]) -> Iterator[tuple[str, str]]:
    for lower in lowers:
        yield "lowerdir+", lower
    for lower in data:
        yield "datadir+", lower


def _upper(step: api.Overlay, opened: list[int]) -> tuple[tuple[str, str], ...]:
    if step.upper is None or step.work is None:
        return ()
    upper, work = _short(step.upper, opened), _short(step.work, opened)
    # Of these two, unlike of lowerdir+, the kernel takes backslashes away.
    return ("upperdir", upper.replace("\\", "\\\\")), ("workdir", work.replace("\\", "\\\\"))
