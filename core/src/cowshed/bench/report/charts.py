"""Charts as SVG in percent of their width, so that they fit any: a bar or a dot, its interval, and every sample."""

from __future__ import annotations

import math

from cowshed.bench.report.words import value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from cowshed.bench.result import Row
    from cowshed.bench.samples import Figure

_WIDE = 25.0  # greatest over smallest median from which a scale is logarithmic: a bar would be nothing
_END = 96.0  # percent at which the greatest value lies


class Scale:
    """From values of a row to percent of the width."""

    def __init__(self, row: Row) -> None:
        figures = list(row.figures.values())
        values = [sample.value for figure in figures for sample in figure.samples]
        medians = [figure.median for figure in figures]
        least = min((v for v in values if v > 0), default=0.0)
        self.logarithmic = least > 0 and max(medians) / max(min(medians), least) > _WIDE
        # A sample far out must not press all others together; it is drawn at the edge.
        self.most = max(max(figure.high for figure in figures), 1e-12)
        if self.logarithmic:
            self._low = math.floor(math.log10(least) * 2) / 2
            self._high = max(math.log10(self.most), self._low + 1)

    def at(self, number: float) -> float:
        if not self.logarithmic:
            return max(0.0, min(100.0, number / self.most * _END))
        if number <= 0:
            return 0.0
        return max(0.0, min(100.0, (math.log10(number) - self._low) / (self._high - self._low) * _END))

    def ticks(self) -> list[float]:
        if self.logarithmic:
            first, last = math.ceil(self._low - 1e-9), math.floor(self._high + 1e-9)
            step = max(1, (last - first + 1) // 4)
            return [10.0**n for n in range(first, last + 1, step)]
        step = 10 ** math.floor(math.log10(self.most))
        for part in (0.2, 0.5, 1, 2, 5):
            if self.most / (step * part) <= 4:
                step *= part
                break
        return [n * step for n in range(int(self.most / step + 1e-9) + 1)]


def bar(figure: Figure, scale: Scale) -> str:
    """One subject's line of a chart."""
    x, low, high = scale.at(figure.median), scale.at(figure.low), scale.at(figure.high)
    parts = [
        f'<line class="grid" x1="{scale.at(tick):.2f}%" x2="{scale.at(tick):.2f}%" y1="0" y2="26"/>'
        for tick in scale.ticks()
    ]
    if not scale.logarithmic:
        parts.append(f'<rect class="bar" x="0" y="6" width="{x:.2f}%" height="14" rx="2"/>')
    parts += [f'<circle class="sample" cx="{scale.at(sample.value):.2f}%" cy="13" r="2"/>' for sample in figure.samples]
    parts.append(f'<line class="interval" x1="{low:.2f}%" x2="{high:.2f}%" y1="13" y2="13"/>')
    parts += [f'<line class="interval" x1="{end:.2f}%" x2="{end:.2f}%" y1="9" y2="17"/>' for end in (low, high)]
    parts.append(f'<circle class="median" cx="{x:.2f}%" cy="13" r="4"/>')
    return f'<svg class="line" height="26" role="presentation">{"".join(parts)}</svg>'


def axis(scale: Scale, unit: str) -> str:
    """The numbers below a chart."""
    parts = []
    for n, tick in enumerate(scale.ticks()):
        x = scale.at(tick)
        anchor = "start" if x < 3 else "end" if x > 94 else "middle"
        label = "0" if tick == 0 else value(tick, unit)
        narrow = ' class="odd"' if n % 2 else ""
        parts.append(f'<text{narrow} x="{x:.2f}%" y="12" text-anchor="{anchor}">{label}</text>')
    return f'<svg class="axis" height="16" role="presentation">{"".join(parts)}</svg>'
