"""The whole suite for import: it makes a plug-in author's own test file of a few lines.

    from cowshed_conformance.suite import *

    DRIVER = "mine"
    DRIVER_OPTIONS = {"compression": "none"}
    SUITE_VERSION = 1  # cases that came later are told, and fail nothing

The fixtures come along. Cases are left out as in any other file: `-k`, `--deselect`, `--level`.
"""

from __future__ import annotations

import importlib
import pkgutil

from cowshed_conformance import cases, fixtures

MODULES = tuple(f"{cases.__name__}.{found.name}" for found in pkgutil.iter_modules(cases.__path__))
_modules = [importlib.import_module(name) for name in MODULES]
__all__: list[str] = []
for _module in (fixtures, *_modules):
    for _name, _value in vars(_module).items():
        if not _name.startswith("_") and getattr(_value, "__module__", "") == _module.__name__:
            globals()[_name] = _value
            __all__ += [_name]
