"""What a row of samples says: median, the interval it lies in, and whether two rows differ at all."""

from __future__ import annotations

import random
import statistics
from dataclasses import dataclass, field

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

FEW = 5  # below so many samples an interval is hardly one
ENOUGH = 4  # two rows of three lie apart by chance once in ten times, two of four once in thirty-five
NARROW = 0.1  # of the median: an interval of which more samples would tell little more
_DRAWS = 500
_CONFIDENCE = 0.95


@dataclass
class Sample:
    """One measurement. What the kernel's own threads do is in no CPU time."""

    value: float  # ms, or what the row's unit says
    cpu: float | None = None  # ms, of this process and its children
    written: int | None = None  # bytes that reached the device
    read: int | None = None  # bytes that came from it
    memory: int | None = None  # bytes by which this process's largest resident set rose


@dataclass
class Figure:
    """What the samples of one subject in one row come to."""

    median: float
    low: float  # ends of the interval in which the median lies with 95 %
    high: float
    cpu: float | None
    written: float | None
    read: float | None
    memory: float | None
    samples: list[Sample] = field(default_factory=list)

    @property
    def few(self) -> bool:
        return len(self.samples) < FEW

    @property
    def narrow(self) -> bool:
        return self.high - self.low <= NARROW * self.median


def interval(values: Sequence[float], seed: int = 1) -> tuple[float, float]:
    """In which the median lies with 95 %, by drawing again from the values (bootstrap, percentiles).

    Of fewer than three values it is all that was seen. With so few as five it is wide, and it should be.
    """
    if len(values) < 3:
        return min(values), max(values)
    chance = random.Random(seed)
    drawn = sorted(statistics.median(chance.choices(values, k=len(values))) for _ in range(_DRAWS))
    cut = round(_DRAWS * (1 - _CONFIDENCE) / 2)
    return drawn[cut], drawn[-1 - cut]


def figure(samples: Sequence[Sample]) -> Figure:
    """Of at least one sample."""
    values = [sample.value for sample in samples]
    low, high = interval(values)

    def middle(name: str) -> float | None:
        found = [value for sample in samples if (value := getattr(sample, name)) is not None]
        return statistics.median(found) if found else None

    return Figure(
        statistics.median(values), low, high, middle("cpu"), middle("written"), middle("read"), middle("memory"),
        list(samples),
    )  # fmt: skip


def differ(one: Figure, other: Figure) -> bool:
    """Whether a difference is shown: the intervals do not overlap, and there are enough samples for that to be none of
    chance."""
    if len(one.samples) < ENOUGH or len(other.samples) < ENOUGH:
        return False
    return one.low > other.high or one.high < other.low


def ratio(one: Figure, other: Figure) -> tuple[float, float, float] | None:
    """one / other as median, least and most that the intervals allow; None if other is nothing."""
    if other.median <= 0 or other.low <= 0:
        return None
    return one.median / other.median, one.low / other.high, one.high / other.low


def as_json(found: Figure) -> dict[str, Any]:
    columns = ("value", "cpu", "written", "read", "memory")
    return {
        "median": found.median, "interval": [found.low, found.high], "cpu": found.cpu, "written": found.written,
        "read": found.read, "memory": found.memory,
        "samples": {
            name: [getattr(sample, name) for sample in found.samples]
            for name in columns
            if any(getattr(sample, name) is not None for sample in found.samples)
        },
    }  # fmt: skip


def from_json(found: dict[str, Any]) -> Figure:
    """What `as_json` gave, its figures taken from the samples again. KeyError, TypeError, ValueError if it is not."""
    columns = found["samples"]
    samples = []
    for n, value in enumerate(columns["value"]):
        more = {name: column[n] for name, column in columns.items() if name != "value"}
        samples.append(Sample(float(value), **more))
    return figure(samples)
