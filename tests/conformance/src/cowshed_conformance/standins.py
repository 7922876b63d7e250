"""What mounts in place of a file system that the kernel here lacks: all else that is tested is the driver's own.

    --stand-in FILE.py:OBJECT     OBJECT is a StandIn

The name of the stand-in is in the name of every test that it has a part in, and in the report.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import pytest

from cowshed.layers import mounting
from cowshed.storage import api, registry


@dataclass(frozen=True)
class StandIn:
    name: str
    of: str  # the name of the drivers that need it
    kind: type  # of the mount steps that it carries out
    mount: Callable[[Any], int]  # such a step → the descriptor of a detached mount
    driver: type  # what a driver is otherwise under it: the methods of this class go before the driver's own
    cannot: Mapping[str, str] = field(default_factory=dict)  # beginning of a case's name → what it does wrong there
    spares: tuple[str, ...] = ()  # what random changes are not to make: "link", "fifo"
    linger: float = 0.0  # seconds for which it may hold a file system after its last mount there has gone


used: StandIn | None = None  # in this run
_words = ""


def use(words: str) -> None:
    """From now on in this process. UsageError if there is no such thing."""
    global used, _words
    where, _, name = words.rpartition(":")
    try:
        found = getattr(_module(where), name)
    except (ImportError, AttributeError, OSError, ValueError) as error:
        raise pytest.UsageError(f"--stand-in {words}: {error}") from error
    if not isinstance(found, StandIn):
        raise pytest.UsageError(f"--stand-in {words} names a {type(found).__name__}, not a StandIn")
    if used is None:
        _replace(found)
    used, _words = found, words


def statement() -> str:
    """What a command of the engine has to run first, to be served by the stand-in of this run too."""
    if used is None:
        return ""
    return (
        f"from cowshed_conformance import standins; standins.use({os.path.abspath(_words)!r}); standins.everywhere(); "
    )


def everywhere() -> None:
    """Serve the drivers that the engine finds by name in this process."""
    real = registry.load

    def load(
        name: str, remembered: registry.Remembered | None = None, *, refresh: bool = False
    ) -> tuple[api.DriverPlugin, registry.Remembered]:
        plugin, found = real(name, remembered, refresh=refresh)
        return under(plugin), found

    registry.load = load


def _module(where: str) -> Any:
    if not where.endswith(".py"):
        return importlib.import_module(where)
    spec = importlib.util.spec_from_file_location(os.path.basename(where).removesuffix(".py"), where)
    if spec is None or spec.loader is None:
        raise ImportError(f"{where} is no Python file")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _replace(found: StandIn) -> None:
    real = mounting._execute

    def execute(step: api.Mount, done: list[int]) -> int:
        return found.mount(step) if isinstance(step, found.kind) else real(step, done)

    mounting._execute = execute


def mark(items: Iterable[pytest.Item]) -> None:
    """Skip the cases that would tell of the stand-in's own faults."""
    if used is None:
        return
    for item in items:
        why = next((why for name, why in used.cannot.items() if item.name.startswith(name)), "")
        if why:
            item.add_marker(pytest.mark.skip(reason=f"[stand-in] {used.name} {why}"))


def under(plugin: api.DriverPlugin) -> api.DriverPlugin:
    """The plug-in, whose drivers are as they are under the stand-in of this run."""
    if used is None or plugin.name != used.of:
        return plugin
    differs = used.driver

    def opened(root: str, options: api.Options, host: api.Host, *, store: api.StoreId) -> api.Driver:
        driver = plugin.open(root, options, host, store=store)
        driver.__class__ = type(type(driver).__name__, (differs, type(driver)), {})
        return driver

    return api.DriverPlugin(
        plugin.name, plugin.api, plugin.summary, plugin.options, plugin.probe, plugin.init, opened, plugin.destroy,
        plugin.priority, plugin.homepage,
    )  # fmt: skip
