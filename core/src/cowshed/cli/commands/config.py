"""config show, config check: they work whatever the configuration says."""

from __future__ import annotations

import os
import sys

from cowshed.cli import output
from cowshed.config import settings
from cowshed.config.whole import Whole
from cowshed.errors import CowshedError
from cowshed.storage.errors import StorageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from cowshed.cli.parser import Values


def show(flags: Values, said: Values) -> int:
    whole = _whole(flags)
    rows = [
        {
            "Name": value.name, "Value": _shown(value.value), "Origin": value.origin,
            "Overruled": "; ".join(value.overruled),
        }
        for value in whole.values(every_driver=bool(said.all))
    ]  # fmt: skip
    output.listing(rows, ("Name", "Value", "Origin", "Overruled"), said.format, what="config show")
    return _tell(whole)


def check(flags: Values, said: Values) -> int:
    """Of one file by itself, or of everything that is read."""
    whole = Whole({"config": said["operands"][0]}, {}) if said["operands"] else _whole(flags)
    status = _tell(whole)
    if not status:
        print("right")
    return status


def _whole(flags: Values) -> Whole:
    """With what the store has fixed, if there is one that can be read."""
    from cowshed.engine import Engine

    stored, kept = "", {}
    try:
        root, run_root = settings.places(flags, os.environ)
        engine = Engine(settings.Settings(root, run_root, "", ""))
        stored, kept = engine.stored_driver(), engine.kept_options()
    except (CowshedError, StorageError, OSError) as error:
        sys.stderr.write(f"cowshed: the store has no say here: {error}\n")
    return Whole(flags, os.environ, kept, stored)


def _tell(whole: Whole) -> int:
    sys.stdout.flush()
    for problem in whole.problems:
        where = f"{problem.where}: " if problem.where else ""
        remedy = f": {problem.remedy}" if problem.remedy else ""
        sys.stderr.write(f"cowshed: {where}{problem.text}{remedy}\n")
    return 1 if whole.problems else 0


def _shown(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        return ", ".join(map(_shown, value))
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key} = {_shown(item)}" for key, item in value.items()) + "}"
    return "" if value is None else str(value)
