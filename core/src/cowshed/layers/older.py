"""Overlays as kernels before Linux 6.8 take them: all lower directories in one string, of which fsconfig(2) takes 255
bytes and mount(2) a page. So it is mount(2), in a namespace that lives for this call only; imported only then.
"""

from __future__ import annotations

import os

from cowshed_linux import mount, process

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from cowshed.storage import api

_PAGE = 4095  # bytes that mount(2) takes; what is beyond is cut off without a word
_PLACE = "/proc"  # a directory that is always there; what is mounted on it is seen by one thread


def overlay(step: api.Overlay, lowers: Sequence[str], below: Sequence[int], *, read_only: bool) -> int:
    """A detached overlay. The mount table names its lower directories by their last parts.

    lowers: the paths of the step's lower directories. below: detached mounts among them; they cannot be attached
    afterwards. Raises OSError; E2BIG: there are too many layers for a page.
    """
    own = [step.upper, step.work] if step.upper is not None and step.work is not None else []
    paths = [*lowers, *own]
    above = os.path.commonpath([os.path.dirname(path) for path in paths])
    named = [os.path.relpath(path, above) for path in paths]

    def work() -> int:
        for fd in below:
            mount.attach(fd, "/")  # hides nothing: paths begin below it
        # Of this thread, as its namespace: what /proc/self leads to is mounted in another.
        os.chdir(above.replace("/proc/self/", "/proc/thread-self/", 1))
        opened: list[int] = []
        try:
            options = _options(step, [_escaped(name) for name in named], len(lowers))
            if len(os.fsencode(options)) > _PAGE:
                opened.extend([os.open(name, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC) for name in named])
                options = _options(step, [str(fd) for fd in opened], len(lowers))
                os.chdir("/proc/thread-self/fd")
            if len(os.fsencode(options)) > _PAGE:
                text = f"{len(lowers)} layers do not fit in one page of options; Linux 6.8 has no such limit"
                raise OSError(7, f"mount overlay: {text}")
            try:
                mount.mount("cowshed", _PLACE, "overlay", mount.RDONLY if read_only else 0, options)
            except OSError as error:
                raise OSError(error.errno, _refusal(step, len(lowers), error)) from None
            return mount.clone(_PLACE)
        finally:
            for fd in opened:
                os.close(fd)

    return process.aside(-1, work)


def _refusal(step: api.Overlay, lowers: int, error: OSError) -> str:
    """mount(2) does not say which option it did not like: so all are named, and of the layers the topmost."""
    words = [f"{lowers} layers", *([f"upperdir={step.upper}"] if step.upper is not None else []), *_own(step)]
    return f"mount overlay: {', '.join(words)}: {os.strerror(error.errno or 0)} (the kernel's log may say why)"


def _own(step: api.Overlay) -> list[str]:
    return [name if value is None else f"{name}={value}" for name, value in step.options]


def _options(step: api.Overlay, names: Sequence[str], lowers: int) -> str:
    words = [f"lowerdir={':'.join(names[:lowers])}", *_own(step)]
    words += [f"{key}={name}" for key, name in zip(("upperdir", "workdir"), names[lowers:], strict=False)]
    return ",".join(words)


def _escaped(path: str) -> str:
    return path.replace("\\", "\\\\").replace(":", "\\:").replace(",", "\\,")
