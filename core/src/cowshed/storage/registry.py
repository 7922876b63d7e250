"""Finding plug-ins, storage drivers above all: stevedore lives here and nowhere else.

stevedore with importlib.metadata costs 50 ms to import, more than all else that `run` does. So what it found for a
driver is remembered by the store (`Remembered`), and the module is imported directly while the `entry_points.txt` that
named it is unchanged.

Its traps are kept out: the list of entry points comes from importlib.metadata and not from the cache in the home
directory, whose times are 32-bit floats (an entry point added within two minutes stays unseen); duplicates are counted
here, before anything is loaded; the plug-in is taken from the extension itself, so that one that is falsy works; a
failing import is kept with its reason and stops nobody else.

The launcher that `make setup` writes starts without `site`, and so without the .pth files by which editable
installations are found. They are read here, before a plug-in that sys.path does not show is given up.
"""

from __future__ import annotations

import os

from cowshed.errors import NotFound
from cowshed.storage.api import API_VERSION, ENTRY_POINT_GROUP, DriverPlugin
from cowshed.storage.errors import Unsupported
from cowshed.storage.record import record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any


@record(frozen=True)
class Remembered:
    """Where a plug-in was found, and by which file, as it was then."""

    name: str
    attr: str  # module:attribute
    path: str  # of entry_points.txt
    mtime_ns: int
    size: int


@record(frozen=True)
class Found:
    """An installed plug-in: usable, or broken and why."""

    name: str
    distribution: str
    plugin: Any  # a DriverPlugin, or what else the group holds; None: broken
    error: str = ""  # one line
    misfit: Unsupported | None = None  # it loads, but does not fit this engine
    trace: str = ""  # where its import failed
    remedy: str = ""


def as_dict(remembered: Remembered) -> dict[str, Any]:
    return {key: getattr(remembered, key) for key in ("name", "attr", "path", "mtime_ns", "size")}


def load(name: str, remembered: Remembered | None = None, *, refresh: bool = False) -> tuple[DriverPlugin, Remembered]:
    """The plug-in called name, and what to remember of it for the next time.

    remembered is what an earlier call gave; it is trusted while its file is unchanged and the module still has the
    attribute, unless refresh. Raises NotFound if there is no such plug-in, it is broken, or two claim the name;
    Unsupported if it was written for another interface.
    """
    if remembered is not None and not refresh and remembered.name == name and _unchanged(remembered):
        plugin = _remembered_object(remembered.attr)
        if plugin is not None:
            return _fit(name, plugin), remembered
    points = [point for point in entry_points() if point.name == name]
    if not points:
        raise _unknown(name)
    if len(points) > 1:
        raise NotFound(f"storage driver {name} is {_claims(points)}", remedy=_uninstall(points))
    (found,) = _extensions([points[0]])
    if found.plugin is None:
        if found.misfit is not None:
            raise found.misfit
        raise NotFound(
            f"storage driver {name} of {found.distribution} is broken: {found.error}",
            remedy=f"{found.remedy}; cowshed --debug driver list shows where",
        )
    return found.plugin, _remember(points[0])


def _remembered_object(attr: str) -> Any:
    """What `module:attribute` names, or None if that cannot be had: then the search tells why, and names the owner."""
    import sys

    module, _, path = attr.partition(":")
    try:
        try:
            __import__(module)
        except ModuleNotFoundError:
            _read_path_files()
            __import__(module)
        value: Any = sys.modules[module]
        for part in path.split("."):
            value = getattr(value, part)
    except Exception:  # a plug-in's own code runs here
        return None
    return value


_sites: set[str] = set()  # whose .pth files have been read: lines of code in them are for once


def _read_path_files() -> None:
    """Do what `site` would have done for editable installations, if it was left out."""
    import sys

    if sys.flags.no_site:
        import site

        for folder in [path for path in sys.path if path.endswith(("/site-packages", "/dist-packages"))]:
            if folder not in _sites:
                _sites.add(folder)
                site.addsitedir(folder)


def _unknown(name: str) -> NotFound:
    known = names()
    from difflib import get_close_matches

    near = get_close_matches(name, known, 1)
    remedy = f"did you mean {near[0]}?" if near else f"install it; installed are {', '.join(known) or 'none'}"
    return NotFound(f"no storage driver is called {name}", remedy=remedy)


def names() -> list[str]:
    """Of every entry point of the group; nothing is imported."""
    return sorted({point.name for point in entry_points()})


def installed(group: str = ENTRY_POINT_GROUP, fit: Callable[[str, Any], Any] | None = None) -> list[Found]:
    """Every plug-in of the group by name, the broken and the doubly claimed ones with their reason. fit: gives the
    plug-in that an entry point's object is, or raises Unsupported; by default for storage drivers."""
    points = sorted(entry_points(group), key=lambda point: point.name)
    claims = [point.name for point in points]
    result = []
    for point in points:
        if claims.count(point.name) > 1:
            rivals = [p for p in points if p.name == point.name]
            text = f"the name is {_claims(rivals)}"
            result.append(Found(point.name, _owner(point), None, text, remedy=_uninstall(rivals)))
        else:
            result.extend(_extensions([point], group, fit or _fit))
    return result


def _claims(points: list[Any]) -> str:
    return f"claimed by {' and '.join(sorted({_owner(point) for point in points}))}"


def _uninstall(points: list[Any]) -> str:
    names = sorted({point.dist.name for point in points if point.dist is not None})
    return "uninstall one of them" + "".join(f"{', or' if n else ':'} pip uninstall {x}" for n, x in enumerate(names))


def _fit(name: str, plugin: Any) -> DriverPlugin:
    if not isinstance(plugin, DriverPlugin):
        raise Unsupported(f"storage driver {name}: its entry point names no DriverPlugin")
    if plugin.name != name:
        raise Unsupported(f"storage driver {name} calls itself {plugin.name}")
    if plugin.api[0] != API_VERSION[0] or plugin.api[1] > API_VERSION[1]:
        theirs, ours = ".".join(map(str, plugin.api)), ".".join(map(str, API_VERSION))
        raise Unsupported(
            f"storage driver {name} needs interface {theirs}; this engine has {ours}",
            remedy="upgrade cowshed" if plugin.api > API_VERSION else "upgrade the driver",
        )
    return plugin


def entry_points(group: str = ENTRY_POINT_GROUP) -> list[Any]:
    from importlib import metadata

    return list(metadata.entry_points(group=group))


def _extensions(
    points: list[Any], group: str = ENTRY_POINT_GROUP, fit: Callable[[str, Any], Any] = _fit
) -> list[Found]:
    from stevedore.extension import ExtensionManager

    _read_path_files()

    class Manager(ExtensionManager):  # type: ignore[misc]
        def list_entry_points(self) -> list[Any]:
            return points

    failures: list[Found] = []

    def failed(manager: Any, point: Any, error: BaseException) -> None:
        import traceback

        text = f"{type(error).__name__}: {error}".replace("\n", " ")
        trace = "".join(traceback.format_exception(error))
        failures.append(Found(point.name, _owner(point), None, text, trace=trace, remedy="reinstall it"))

    try:
        manager = Manager(group, invoke_on_load=False, on_load_failure_callback=failed)
    except (AssertionError, SystemExit) as error:  # the two that stevedore and its callback let through
        for point in points:
            failed(None, point, error)
        return failures
    found = []
    for extension in manager:
        owner = _owner(extension.entry_point)
        try:
            found.append(Found(extension.name, owner, fit(extension.name, extension.plugin)))
        except Unsupported as error:
            found.append(Found(extension.name, owner, None, str(error), error, remedy=error.remedy))
    return found + failures


def _owner(point: Any) -> str:
    return f"{point.dist.name} {point.dist.version}" if point.dist is not None else "an unknown distribution"


def _remember(point: Any) -> Remembered:
    path = next((str(f.locate()) for f in point.dist.files or () if f.name == "entry_points.txt"), "")
    if not path:
        return Remembered(point.name, point.value, "", 0, 0)
    status = os.stat(path)
    return Remembered(point.name, point.value, path, status.st_mtime_ns, status.st_size)


def _unchanged(remembered: Remembered) -> bool:
    if not remembered.path:
        return False
    try:
        status = os.stat(remembered.path)
    except OSError:
        return False
    return (status.st_mtime_ns, status.st_size) == (remembered.mtime_ns, remembered.size)
