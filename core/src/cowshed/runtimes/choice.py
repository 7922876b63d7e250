"""Which runtime starts a container: who named it, where it is, what drives it and how.

A name is one of: `native`; a table of the configuration; an installed plug-in that is a runtime by itself; a program in
PATH. What has a slash is the path of a program. A container keeps what was found for it (`ContainerRow.runtime`).
"""

from __future__ import annotations

import os

from cowshed.errors import Conflict, LaunchFailed, NotFound, Unsupported
from cowshed.storage.record import record
from cowshed_runtime.cgroup.group import Group
from cowshed_runtime.errors import LaunchError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from cowshed.config.settings import Settings
    from cowshed.engine import Engine
    from cowshed.runtimes.trial import Trial
    from cowshed.state.rows import ContainerRow

NATIVE: dict[str, Any] = {"name": "native"}
_DRIVERS = ("native", "oci", "shim")  # plug-ins of ours that are no runtime or need no search
# What is looked for in PATH, to be listed. What it is, its answers tell.
_CANDIDATES = ("runc", "crun", "youki", "runsc", "kata-runtime", "cowshed-runtime")
_SHIMS = ("containerd-shim-", "-v2")
_KILL = 9
_FOLDERS = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def is_native(row: ContainerRow) -> bool:
    return bool(row.runtime["name"] == "native")


def by_itself(name: str) -> bool:
    """Whether a name needs no table of the configuration."""
    return name == "native" or bool(_in_path(name)) or name in _plugins()


def _plugins() -> list[str]:
    """Installed plug-ins that may be runtimes by themselves."""
    from cowshed.runtimes.api import ENTRY_POINT_GROUP
    from cowshed.storage import registry

    return [point.name for point in registry.entry_points(ENTRY_POINT_GROUP) if point.name not in _DRIVERS]


def _in_path(name: str) -> str:
    """The absolute path of a program, "" if there is none."""
    if "/" in name:
        path = os.path.abspath(name)
        return path if os.access(path, os.X_OK) and os.path.isfile(path) else ""
    for folder in [*os.environ.get("PATH", "").split(":"), *_FOLDERS.split(":")]:
        path = f"{folder}/{name}"
        if folder.startswith("/") and os.access(path, os.X_OK) and os.path.isfile(path):
            return path
    return ""


def find(settings: Settings, name: str) -> dict[str, Any]:
    """name, path, options, settings of a runtime; path is "" for a plug-in that is one by itself. NotFound."""
    table = settings.runtimes.get(name)
    if table is not None:
        found = {"name": name, "path": table["path"], "options": list(table.get("options") or ()),
                 "settings": table.get("settings", "")}  # fmt: skip
        if not _in_path(table["path"]):
            raise NotFound(
                f"runtime {name}: {table['path']} is no program", remedy=f"mend [runtimes.{name}], or install it"
            )
        return found
    if name == "native" or name in _plugins():
        return {"name": name, "path": "", "options": [], "settings": ""}
    path = _in_path(name)
    if not path:
        text, remedy = missing(settings, name)
        raise NotFound(text, remedy=remedy)
    return {"name": name, "path": path, "options": [], "settings": ""}


def programs() -> list[dict[str, Any]]:
    """Programs in PATH that are runtimes by their names, to be asked."""
    found: dict[str, str] = {name: path for name in _CANDIDATES if (path := _in_path(name))}
    for folder in dict.fromkeys([*os.environ.get("PATH", "").split(":"), *_FOLDERS.split(":")]):
        try:
            names = os.listdir(folder) if folder.startswith("/") else []
        except OSError:
            continue  # PATH names folders that are not there
        for name in names:
            if name.startswith(_SHIMS[0]) and name.endswith(_SHIMS[1]) and _in_path(name):
                found.setdefault(name, _in_path(name))
    return [{"name": name, "path": path, "options": [], "settings": ""} for name, path in sorted(found.items())]


@record(frozen=True)
class Known:
    """A runtime that can be named here, or might be."""

    found: dict[str, Any]
    source: str  # where its name comes from
    find: bool = True  # by its name; else it has none that `find` knows
    error: str = ""  # why its plug-in is none
    remedy: str = ""


def known(settings: Settings) -> list[Known]:
    """Ours, the plug-ins that are runtimes, the tables of the configuration, what lies in PATH, and what is named."""
    from cowshed.runtimes import registry

    nothing: dict[str, Any] = {"path": "", "options": [], "settings": ""}
    result = []
    for one in registry.installed():
        found = {**nothing, "name": one.name}
        if one.plugin is None:
            result.append(Known(found, one.distribution, error=one.error, remedy=one.remedy))
        elif not one.plugin.programs:
            result.append(Known(found, one.distribution))
    for name, table in settings.runtimes.items():
        result.append(Known({**nothing, **table, "name": name}, f"table [runtimes.{name}]"))
    names = {one.found["name"] for one in result}
    result += [Known(found, "a program in PATH") for found in programs() if found["name"] not in names]
    names |= {one.found["name"] for one in result}
    if settings.runtime not in names and (path := _in_path(settings.runtime)):
        result.append(Known({**nothing, "name": settings.runtime, "path": path}, settings.runtime_from))
    return result


def missing(settings: Settings, name: str) -> tuple[str, str]:
    """What is wrong with a name that nothing has, and what to do about it."""
    from difflib import get_close_matches

    names = sorted({one.found["name"] for one in known(settings)})
    near = get_close_matches(name, names, 1)
    remedy = f"did you mean {near[0]}?" if near else f"there are {', '.join(names)}: cowshed runtime list"
    return f"runtime {name} ({settings.runtime_from}) is not known", remedy


def tried(engine: Engine, found: dict[str, Any], *, again: bool = False) -> Trial:
    """What came of asking and trying a runtime in this boot; again: whatever was found before."""
    from cowshed.runtimes import registry, trial

    run = f"{engine.settings.run_root}/runtimes"
    known = None if again else trial.recall(found, run)
    if known is None:
        folder = f"{run}/{os.getpid()}"
        if found["path"]:
            known = trial.examine(found, folder, registry.installed())
        else:
            one = next((one for one in registry.installed() if one.name == found["name"]), None)
            if one is None or one.plugin is None:
                return trial.Trial("", error=one.error if one is not None else "it is not installed")
            known = trial.alone(one, folder)
        trial.remember(found, run, known)
    return known


def chosen(engine: Engine) -> dict[str, Any]:
    """The runtime for a new container, as the container keeps it. NotFound, Unsupported if it cannot run one here."""
    settings = engine.settings
    if settings.runtime == "native":
        return NATIVE
    found = find(settings, settings.runtime)
    trial = tried(engine, found)
    if trial.error:
        raise _unusable(found, trial, settings.runtime_from)
    return {**found, "kind": trial.kind, "attr": trial.attr}


def _unusable(found: dict[str, Any], trial: Trial, who: str = "") -> Unsupported:
    said = f" ({who})" if who else ""
    return Unsupported(
        f"runtime {found['name']}{said} cannot run a container here: {trial.error}",
        remedy=f"cowshed --runtime {found['name']} runtime why tells what was tried; or take --runtime native",
    )


def task(engine: Engine, row: ContainerRow) -> dict[str, Any]:
    """What the container's runtime has to know to start it, as `tasks.of` takes it. Unsupported, NotFound."""
    kept = row.runtime
    if kept["path"] and not _in_path(kept["path"]):
        raise NotFound(
            f"container {row.name} was made for runtime {kept['name']}, and {kept['path']} is not there any more",
            remedy="install it again, or make another container",
        )
    trial = tried(engine, kept)
    if trial.error:
        raise _unusable(kept, trial)
    return {
        "attr": trial.attr, "id": row.id, "folder": folder(engine, row), "path": kept["path"],
        "options": kept["options"], "settings": kept["settings"], "hidden": trial.hidden, "grouped": trial.grouped,
    }  # fmt: skip


def folder(engine: Engine, row: ContainerRow) -> str:
    """What is made for the container while it runs."""
    return f"{engine.place(row)}/runtime"


def running(engine: Engine, row: ContainerRow) -> dict[str, Any]:
    """What the container's runtime has to know of it while it runs. Conflict if it does not."""
    from cowshed.runtimes import tasks

    value = tasks.kept(folder(engine, row))
    if value is None:
        raise Conflict(f"container {row.name} is not running", remedy="cowshed start it")
    return value


def signal(engine: Engine, row: ContainerRow, target: int, number: int) -> None:
    """By the runtime, for which the first process that this host sees may be another thing. LaunchFailed."""
    from cowshed.container import state
    from cowshed.runtimes import tasks

    value = tasks.kept(folder(engine, row))
    if value is None:
        return  # it has just ended
    plugin, one = tasks.of(value)
    try:
        plugin.signal(one, target, number)
    except LaunchError as error:
        if not state.alive(engine.place(row)):
            return
        if number == _KILL:  # for which nobody's consent is needed
            Group(row.id).kill()
            return
        raise LaunchFailed(f"container {row.name}: {error}") from None


def end(engine: Engine, row: ContainerRow) -> None:
    """What is left of a container whose monitor was killed; nothing of one that has ended well. LaunchFailed."""
    from cowshed.runtimes import place, tasks

    value = tasks.kept(folder(engine, row))
    if value is None:
        place.remove(folder(engine, row))
    else:
        plugin, one = tasks.of(value)
        try:
            plugin.end(one)
        except LaunchError as error:
            raise LaunchFailed(f"container {row.name}: {error}") from None
