"""What a scenario is: a named piece of work that every subject does in turns, with rows of samples that come of it."""

from __future__ import annotations

import contextlib
import random
from dataclasses import dataclass, field

from cowshed.bench.meter import Meter

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from typing import Any, ClassVar

    from cowshed.bench.samples import Sample
    from cowshed.bench.stores import Subject


class Wrong(Exception):
    """What a subject did is not what it should have done: its figures do not count."""


@dataclass
class Row:
    key: str  # stable: what reports of several runs are compared by
    title: str
    unit: str = "ms"  # or bytes
    versus: str = ""  # the key of another row of the same subject that this one is divided by
    use: tuple[str, ...] = ()  # what people do that depends on it: builds, containers, databases, images
    samples: dict[str, list[Sample]] = field(default_factory=dict)  # by name of subject


class Scenario:
    """One of them. Subclasses say what is done; `runner` says when.

    `setup` once for each subject, `round` in turns, `verify` once at the end: its digest must be `expected`, or if that
    is "" the one that the bare file system has, else all subjects' the same.
    """

    name: ClassVar[str]
    workloads: ClassVar[tuple[str, ...]]  # their ids in the literature of this project: W1 … W22
    title: ClassVar[str]
    text: ClassVar[str]  # what it does and why it matters, for people
    control: ClassVar[bool] = False  # the bare file system does it too
    quota: ClassVar[bool] = False  # on file systems that have quota by project where there is such a thing
    quick: ClassVar[Mapping[str, Any] | None]  # its sizes in a quick run; None: it has no place there
    full: ClassVar[Mapping[str, Any]]
    rounds: ClassVar[int] = 0  # 0: as many as there is time for
    warm_up: ClassVar[int] = 1  # rounds that are not counted
    size: ClassVar[int] = 0  # bytes of its file systems, if others than the run's

    def __init__(self, sizes: Mapping[str, Any], scale: float = 1.0, seed: int = 1) -> None:
        self.sizes = {key: _scaled(value, scale) if key.startswith("files") else value for key, value in sizes.items()}
        self.seed, self.chance = seed, random.Random(seed)
        self.rows: dict[str, Row] = {}
        self.plan()

    def plan(self) -> None:
        """What follows from the sizes, made once."""

    def setup(self, it: Subject) -> None:
        """What is not measured."""

    def round(self, it: Subject) -> None:
        raise NotImplementedError

    def verify(self, it: Subject) -> str:
        """A digest of what the subject comes to; Wrong. "" if the rounds have looked themselves."""
        return ""

    def expected(self) -> str:
        return ""

    # ------------------------------------------------------------ for subclasses

    def row(self, key: str, title: str, unit: str = "ms", versus: str = "", use: tuple[str, ...] = ()) -> Row:
        """A row, made when it is first asked for."""
        full = f"{self.name}/{key}"
        if full not in self.rows:
            self.rows[full] = Row(full, title, unit, f"{self.name}/{versus}" if versus else "", use)
        return self.rows[full]

    @contextlib.contextmanager
    def timed(self, it: Subject, row: Row, *, device: bool = False, of: int = 1) -> Iterator[None]:
        """What the block takes is a sample, unless it fails."""
        with Meter(it.system, device=device, of=of, trees=it.store.trees) as meter:
            yield
        self.record(it, row, meter.sample)

    def record(self, it: Subject, row: Row, sample: Sample) -> None:
        """Times are kept to 10 ns."""
        sample.value = round(sample.value, 5)
        sample.cpu = None if sample.cpu is None else round(sample.cpu, 5)
        row.samples.setdefault(it.name, []).append(sample)


def _scaled(value: Any, scale: float) -> Any:
    if isinstance(value, tuple):
        return tuple(_scaled(one, scale) for one in value)
    return max(10, round(value * scale))
