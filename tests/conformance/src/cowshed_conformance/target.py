"""What is tested: a driver's plug-in object, its options, and where it comes from."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import pytest

from cowshed.errors import CowshedError
from cowshed.storage import options, registry
from cowshed.storage.api import DriverPlugin
from cowshed.storage.errors import StorageError

if TYPE_CHECKING:
    from cowshed.storage.api import Options


@dataclass(frozen=True)
class Target:
    name: str
    plugin: DriverPlugin
    options: Options
    given: Mapping[str, str]
    installed: bool  # found by its entry point
    seed: int
    level: str = "full"
    facts: dict[str, object] = field(default_factory=dict)
    places: dict[str, Mapping[str, str | int | bool | None]] = field(default_factory=dict)  # by path of a backing

    def at(self, root: str) -> Options:
        """The options of a store there: those of the run, and what the backing below it brings (the name of a pool)."""
        above = [path for path in self.places if root == path or root.startswith(f"{path}/")]
        return {**self.options, **(self.places[max(above, key=len)] if above else {})}


def resolve(name: str, given: Mapping[str, str], *, seed: int, level: str) -> Target:
    """A driver by entry-point name, or one that is not installed as module:object."""
    module, colon, attribute = name.partition(":")
    try:
        if colon:
            plugin = getattr(importlib.import_module(module), attribute)
        else:
            plugin, _ = registry.load(name)
        if not isinstance(plugin, DriverPlugin):
            raise pytest.UsageError(f"--driver {name} names a {type(plugin).__name__}, not a DriverPlugin")
        return Target(name, plugin, options.check(plugin, given), dict(given), not colon, seed, level)
    except (CowshedError, StorageError, ImportError, AttributeError) as error:
        remedy = getattr(error, "remedy", "")
        raise pytest.UsageError(f"--driver {name}: {error}" + (f"; {remedy}" if remedy else "")) from error


def words(pairs: list[str]) -> dict[str, str]:
    """`K=V` … as a mapping."""
    for pair in pairs:
        if "=" not in pair:
            raise pytest.UsageError(f"--driver-option {pair}: NAME=VALUE is wanted")
    return dict(pair.split("=", 1) for pair in pairs)
