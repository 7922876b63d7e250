"""Numbers as people read them."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from cowshed.bench.samples import Figure


def value(number: float, unit: str) -> str:
    """ms or bytes with the unit that fits."""
    if unit == "bytes":
        return size(number)
    for limit, factor, name in ((0.001, 1e6, "ns"), (1.0, 1e3, "µs"), (1000.0, 1.0, "ms")):
        if abs(number) < limit:
            return f"{short(number * factor)} {name}"
    return f"{short(number / 1000)} s"


def size(number: float) -> str:
    for name, shift in (("GiB", 30), ("MiB", 20), ("KiB", 10)):
        if number >= 1 << shift:
            return f"{short(number / (1 << shift))} {name}"
    return f"{number:.0f} B"


def short(number: float) -> str:
    if 0 < number < 0.1:
        return f"{number:.2g}"
    return f"{number:.0f}" if number >= 100 else f"{number:.1f}" if number >= 10 else f"{number:.2f}"


def times(number: float) -> str:
    return f"{short(number)}×"


def spread(figure: Figure, unit: str) -> str:
    return f"{value(figure.low, unit)} … {value(figure.high, unit)}"
