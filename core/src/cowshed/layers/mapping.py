"""Mounts of layers whose ids are mapped by a user namespace (mount_setattr(2), MOUNT_ATTR_IDMAP)."""

from __future__ import annotations

import os

from cowshed.layers.mounting import detached
from cowshed.storage import api
from cowshed_linux import mount


def mapped(plan: api.MountPlan, userns: int) -> int:
    """A detached mount of a plan with the ids of the user namespace at descriptor userns. OSError EINVAL if its file
    system takes no maps.

    The kernel does not map an overlay itself: so its lower directories are mapped, and its upper one gets the owner
    that the root has then.
    """
    step = plan.steps[-1]
    if not isinstance(step, api.Overlay):
        return _with_map(detached(plan), userns)
    below: list[int] = []
    try:
        for lower in step.lowers:
            below.append(_with_map(_lower(plan, lower), userns))  # noqa: PERF401 - those before one that fails too
        if step.upper is not None:
            root = os.fstat(below[0])
            os.chown(step.upper, root.st_uid, root.st_gid)
        lowers = tuple(api.Step(n) for n in range(len(below)))
        own = api.Overlay(lowers, step.upper, step.work, step.read_only, options=step.options)
        return detached(api.MountPlan((own,)), below=below)
    finally:
        for fd in below:
            os.close(fd)


def _lower(plan: api.MountPlan, lower: api.Source) -> int:
    """A mount of a lower directory by itself."""
    if isinstance(lower, str):
        return mount.clone(lower)
    return detached(api.MountPlan(plan.steps[: lower.index + 1], lower.subpath))


def _with_map(fd: int, userns: int) -> int:
    try:
        mount.set_attributes(fd, mount.ATTR_IDMAP, userns=userns)
    except BaseException:
        os.close(fd)
        raise
    return fd
