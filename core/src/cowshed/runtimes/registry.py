"""The plug-ins of the namespace `cowshed.runtimes`: found as storage drivers are (`cowshed.storage.registry`)."""

from __future__ import annotations

from cowshed.runtimes.api import API_VERSION, ENTRY_POINT_GROUP
from cowshed.storage import registry
from cowshed.storage.errors import Unsupported

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from cowshed.storage.registry import Found

_HAS = ("summary", "programs", "drives", "facts", "start", "execute", "signal", "end")


def installed() -> list[Found]:
    """Every plug-in by name; the broken and the doubly claimed ones with their reason."""
    return registry.installed(ENTRY_POINT_GROUP, fit)


def attr_of(name: str) -> str:
    """module:attribute of the plug-in called name, which is installed."""
    return str(next(point.value for point in registry.entry_points(ENTRY_POINT_GROUP) if point.name == name))


def fit(name: str, plugin: Any) -> Any:
    """The plug-in. Unsupported if it is none, or is of another interface."""
    missing = [word for word in _HAS if not hasattr(plugin, word)]
    if missing or getattr(plugin, "name", "") != name:
        text = f"lacks {', '.join(missing)}" if missing else f"calls itself {getattr(plugin, 'name', '?')}"
        raise Unsupported(f"runtime {name}: what its entry point names {text}")
    if plugin.api[0] != API_VERSION[0] or plugin.api[1] > API_VERSION[1]:
        theirs, ours = ".".join(map(str, plugin.api)), ".".join(map(str, API_VERSION))
        raise Unsupported(f"runtime {name} needs interface {theirs}; this engine has {ours}", remedy="upgrade one")
    return plugin
