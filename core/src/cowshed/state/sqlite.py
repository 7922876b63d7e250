"""SQLite as the store uses it: the C module without `sqlite3`, whose date adapters cost 4 ms of every command, and
without `functools`, which costs 3 ms with `collections`.

When the module is loaded it takes one name from `functools`, `lru_cache`, for the statements that a connection keeps.
It is given the C class that this is made of.
"""

from __future__ import annotations

import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any


def _kept(count: int) -> Callable[[Callable[..., Any]], Any]:
    from _functools import _lru_cache_wrapper  # type: ignore[import-not-found]  # no stub

    return lambda call: _lru_cache_wrapper(call, count, False, tuple)


if "functools" in sys.modules:
    from _sqlite3 import Error, connect
else:
    sys.modules["functools"] = stand_in = type(sys)("functools")
    stand_in.lru_cache = _kept  # type: ignore[attr-defined]
    try:
        from _sqlite3 import Error, connect
    finally:
        del sys.modules["functools"]

__all__ = ["Error", "connect"]
