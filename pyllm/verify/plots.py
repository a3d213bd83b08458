"""Plots of differences as small SVG pictures. Colours are CSS variables of the page, so they follow light and dark."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from .measure import DECADES

WIDTH, HEIGHT = 360, 220
LEFT, RIGHT, TOP, BOTTOM = 46, 10, 12, 34
COLOURS = 6  # --c0 ... --c5


@dataclass(frozen=True)
class Scale:
    """Numbers low..high to pixels begin..end; logarithmic: both are exponents of ten."""

    low: float
    high: float
    begin: float
    end: float
    logarithmic: bool = False

    def __call__(self, value: float) -> float:
        if self.logarithmic:
            value = math.log10(value) if value > 0 else self.low
        part = (min(max(value, self.low), self.high) - self.low) / (self.high - self.low)
        return self.begin + part * (self.end - self.begin)


def by_position(series: Sequence[tuple[str, Sequence[float]]], limit: float) -> str:
    """The largest difference at each token, a line for each input, on a logarithmic axis; the limit is dashed."""
    values = [value for _, line in series for value in line if value > 0 and math.isfinite(value)]
    y = _decades([*values, limit])
    longest = max(len(line) for _, line in series)
    x = Scale(0, max(longest - 1, 1), LEFT, WIDTH - RIGHT)
    parts = [*_log_axis(y), *_x_labels(x, _round_ticks(longest)), _axis_name("token")]
    parts.append(_limit_line(y(limit), f"agrees up to {limit:.1e}"))
    for number, (label, line) in enumerate(series):
        colour = f"var(--c{number % COLOURS})"
        places = [(x(at), y(value if math.isfinite(value) else 10**y.high)) for at, value in enumerate(line)]
        title = f"<title>{escape(label)}: max {max(line):.2e}</title>"
        if len(places) > 1:
            path = " ".join(f"{px:.1f},{py:.1f}" for px, py in places)
            parts.append(f'<polyline points="{path}" style="stroke:{colour}" class="line">{title}</polyline>')
        else:
            parts += [f'<circle cx="{px:.1f}" cy="{py:.1f}" r="3" style="fill:{colour}">{title}</circle>'
                      for px, py in places]  # fmt: skip
    return _svg(parts, "Largest difference at each token")


def histogram(counts: Sequence[int]) -> str:
    """How many differences lie in each decade."""
    used = [index for index, count in enumerate(counts) if count]
    first, last = max(min(used, default=0) - 1, 0), min(max(used, default=0) + 1, len(counts) - 1)
    shown = counts[first : last + 1]
    total = max(sum(counts), 1)
    y = Scale(0, max(shown) / total, HEIGHT - BOTTOM, TOP)
    step = (WIDTH - LEFT - RIGHT) / len(shown)
    parts = [_grid(y(part), f"{100 * part:.0f} %") for part in (0.25, 0.5, 0.75, 1.0) if part <= y.high]
    for at, count in enumerate(shown):
        left, top = LEFT + at * step, y(count / total)
        height = HEIGHT - BOTTOM - top
        label = f"<title>{_decade(first + at)}: {count:,} ({100 * count / total:.2g} %)</title>"
        parts.append(
            f'<rect x="{left + 1:.1f}" y="{top:.1f}" width="{step - 2:.1f}" height="{height:.1f}" rx="2" class="bar">'
            f"{label}</rect>"
        )
        if first + at < len(DECADES):
            name = _power(DECADES[first + at])
            parts.append(f'<text x="{left + step:.1f}" y="{HEIGHT - BOTTOM + 14}" class="tick mid">{name}</text>')
    return _svg([*parts, _baseline(), _axis_name("|difference|")], "How large the differences are")


def scatter(points: Sequence[tuple[float, float]], limit: float) -> str:
    """Differences beside the reference's values; the limits are dashed where they are near."""
    finite = [(value, apart) for value, apart in points if math.isfinite(value) and math.isfinite(apart)] or [(0, 0)]
    values = [value for value, _ in finite]
    most = max((abs(apart) for _, apart in finite), default=0.0) or limit
    margin = (max(values) - min(values)) * 0.04 or 1.0
    x = Scale(min(values) - margin, max(values) + margin, LEFT, WIDTH - RIGHT)
    y = Scale(-1.15 * most, 1.15 * most, HEIGHT - BOTTOM, TOP)
    parts = [_grid(y(value), f"{value:.0e}" if value else "0") for value in (-most, 0.0, most)]
    if limit <= 1.15 * most:
        parts += [_limit_line(y(sign * limit), f"agrees up to {limit:.1e}") for sign in (-1, 1)]
    ticks = [min(values), (min(values) + max(values)) / 2, max(values)]
    parts += _x_labels(x, ticks, "{:.3g}")
    parts += [f'<circle cx="{x(value):.1f}" cy="{y(apart):.1f}" r="1.8" class="dot"/>' for value, apart in finite]
    return _svg([*parts, _axis_name("reference")], "Differences beside the reference's values")


def _svg(parts: Sequence[str], label: str) -> str:
    body = "".join(parts)
    return f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(label)}">{body}</svg>'


def _decades(values: Sequence[float]) -> Scale:
    """A logarithmic axis that all values fit."""
    low = math.floor(math.log10(min(values)))
    high = math.ceil(math.log10(max(values)) + 0.05)
    return Scale(low, max(high, low + 1), HEIGHT - BOTTOM, TOP, logarithmic=True)


def _log_axis(y: Scale) -> list[str]:
    step = max(1, round((y.high - y.low) / 6))
    return [_grid(y(10.0**power), _power(power)) for power in range(int(y.low), int(y.high) + 1, step)]


def _grid(at: float, label: str) -> str:
    line = f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{at:.1f}" y2="{at:.1f}" class="grid"/>'
    return f'{line}<text x="{LEFT - 6}" y="{at + 3.5:.1f}" class="tick end">{label}</text>'


def _limit_line(at: float, label: str) -> str:
    place = f'x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{at:.1f}" y2="{at:.1f}"'
    return f'<line {place} class="limit"><title>{escape(label)}</title></line>'


def _x_labels(x: Scale, ticks: Sequence[float], form: str = "{:.0f}") -> list[str]:
    found = []
    for index, tick in enumerate(ticks):
        anchor = "end" if index == len(ticks) - 1 and index else "mid"
        text = form.format(tick)
        found.append(f'<text x="{x(tick):.1f}" y="{HEIGHT - BOTTOM + 14}" class="tick {anchor}">{text}</text>')
    return [_baseline(), *found]


def _baseline() -> str:
    at = HEIGHT - BOTTOM
    return f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{at}" y2="{at}" class="base"/>'


def _axis_name(name: str) -> str:
    return f'<text x="{(LEFT + WIDTH - RIGHT) / 2:.0f}" y="{HEIGHT - 4}" class="tick mid">{escape(name)}</text>'


def _round_ticks(count: int) -> list[float]:
    """0 and at most five places up to count - 1."""
    step = max(1, math.ceil((count - 1) / 5))
    return [float(at) for at in range(0, max(count - 1, 0) + 1, step)]


def _power(exponent: int) -> str:
    """10 with a small exponent."""
    return f'10<tspan dy="-4" font-size="8">{str(exponent).replace("-", chr(0x2212))}</tspan>'


def _decade(index: int) -> str:
    """A bin of the histogram in words."""
    if index == 0:
        return f"up to 1e{DECADES[0]}"
    return f"above 1e{DECADES[index - 1]}" + (f", up to 1e{DECADES[index]}" if index < len(DECADES) else "")
