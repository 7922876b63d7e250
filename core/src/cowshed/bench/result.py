"""A run's result: what is kept as JSON, version 1, and read again.

Every sample is in it; medians and intervals are taken from them again when it is read, so that what is compared has
been made by one method.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field

from cowshed.bench.samples import Figure, as_json, from_json
from cowshed.errors import BadUsage

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

VERSION = 1
FORMAT = "cowshed-bench"


@dataclass
class Row:
    key: str  # SCENARIO/…
    title: str
    unit: str  # ms or bytes
    versus: str  # the key of the row that it is divided by, for the same subject
    use: tuple[str, ...]
    figures: dict[str, Figure]  # by subject


@dataclass
class ScenarioResult:
    name: str
    workloads: tuple[str, ...]
    title: str
    text: str
    control: bool
    sizes: dict[str, Any]
    seconds: float
    rows: list[Row]
    marks: list[str]  # what makes its figures doubtful
    failures: dict[str, str]  # by subject: why it has none
    systems: dict[str, str] = field(default_factory=dict)  # by subject, what its file system was
    narrow_after: int = 0  # rounds after which it ended because all intervals were narrow, 0 if it went on


@dataclass
class Result:
    began: str  # ISO 8601
    seconds: float
    mode: str  # quick, full
    seed: int
    size: int  # bytes of each file system
    version: str  # of cowshed
    machine: dict[str, Any]
    subjects: list[dict[str, Any]]  # name, driver, kind, options, verdict, reason
    refused: list[str]
    marks: list[str]
    baseline: dict[str, dict[str, float]]
    scenarios: list[ScenarioResult]

    def rows(self) -> list[Row]:
        return [row for scenario in self.scenarios for row in scenario.rows]

    def row(self, key: str) -> Row | None:
        return next((row for row in self.rows() if row.key == key), None)

    def drivers(self) -> list[str]:
        """Names of the subjects that are no controls."""
        return [it["name"] for it in self.subjects if it["driver"] != "bare"]


def dump(result: Result) -> str:
    document = {"format": FORMAT, "format_version": VERSION, **vars(result)}
    document["scenarios"] = [
        {
            **vars(scenario),
            "rows": [
                {**vars(row), "figures": {name: as_json(figure) for name, figure in row.figures.items()}}
                for row in scenario.rows
            ],
        }
        for scenario in result.scenarios
    ]
    return json.dumps(document, indent=1) + "\n"


def load(path: str) -> Result:
    """BadUsage if the file is not one of ours, or of a version that is not known here."""
    try:
        with open(path, encoding="utf-8") as file:
            document = json.load(file)
        if document.pop("format") != FORMAT:
            raise ValueError
        version = document.pop("format_version")
    except OSError as error:
        raise BadUsage(f"{path}: {error.strerror}") from None
    except (ValueError, KeyError, AttributeError, TypeError):
        raise BadUsage(f"{path} is no result of cowshed bench", remedy="cowshed bench --out PATH makes one") from None
    if version != VERSION:
        raise BadUsage(
            f"{path} has version {version} of the format; this Cowshed reads {VERSION}", remedy="run it again"
        )
    try:
        document["scenarios"] = [_scenario(one) for one in document["scenarios"]]
        return Result(**document)
    except (TypeError, KeyError, ValueError, AttributeError) as error:
        raise BadUsage(f"{path} is damaged: {type(error).__name__}: {error}", remedy="run it again") from None


def _scenario(document: dict[str, Any]) -> ScenarioResult:
    rows = []
    for row in document["rows"]:
        figures = {name: from_json(found) for name, found in row["figures"].items()}
        rows.append(Row(**{**row, "use": tuple(row["use"]), "figures": figures}))
    return ScenarioResult(**{**document, "rows": rows, "workloads": tuple(document["workloads"])})
