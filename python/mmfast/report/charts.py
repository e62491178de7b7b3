"""Line and bar charts as inline SVG: no script, no resource, colours from the page's style sheet.

Series are coloured by the classes `s0`, `s1`, …; a chart is `role="img"` with a spoken description.
Points that are not finite are left out.
"""

import dataclasses
import math
from collections.abc import Sequence

from mmfast.report.markup import Markup, element

WIDTH, HEIGHT = 760, 300
_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 112, 14, 40
_MAX_POINTS = 600
_LABEL_GAP = 14


@dataclasses.dataclass(frozen=True, kw_only=True)
class Series:
    """One curve: `points` are (x, y); `faint` draws it as the noise behind another, unlabelled."""

    name: str
    points: Sequence[tuple[float, float]]
    colour: int
    faint: bool = False
    dotted: bool = False


def smoothed(points: Sequence[tuple[float, float]], window: int) -> list[tuple[float, float]]:
    """Mean of the `window` points around each; symmetric at the start, one-sided at the end."""
    half, sums = window // 2, [0.0]
    for _, y in points:
        sums.append(sums[-1] + y)
    out = []
    for i, (x, _) in enumerate(points):
        first = i - min(half, i)
        end = min(2 * i - first, len(points) - 1) + 1
        out.append((x, (sums[end] - sums[first]) / (end - first)))
    return out


def line_chart(series: Sequence[Series], *, x_title: str, description: str) -> Markup | None:
    """Curves with direct labels at their right ends, or None when there is nothing to draw."""
    finite = [
        dataclasses.replace(s, points=_thinned([p for p in s.points if all(map(math.isfinite, p))]))
        for s in series
    ]
    finite = [s for s in finite if s.points]
    if not finite:
        return None
    xs = [x for s in finite for x, _ in s.points]
    ys = [y for s in finite for _, y in s.points]
    x_ticks, y_ticks = nice_ticks(min(xs), max(xs), 6), nice_ticks(min(0.0, *ys), max(ys), 6)
    x_low, x_high = min(xs), max(*xs, min(xs) + 1e-9)
    y_low, y_high = y_ticks[0], y_ticks[-1]

    def place(x: float, y: float) -> tuple[float, float]:
        across = (x - x_low) / (x_high - x_low)
        up = (y - y_low) / (y_high - y_low)
        return (
            _LEFT + across * (WIDTH - _LEFT - _RIGHT),
            HEIGHT - _BOTTOM - up * (HEIGHT - _TOP - _BOTTOM),
        )

    parts = []
    for tick in y_ticks:
        _, y = place(x_low, tick)
        parts.append(element("line", x1=_LEFT, x2=WIDTH - _RIGHT, y1=y, y2=y, class_="rule"))
        parts.append(element("text", f"{tick:g}", x=_LEFT - 8, y=y + 4, class_="tick end"))
    for tick in x_ticks:
        if x_low <= tick <= x_high:
            x, _ = place(tick, y_low)
            parts.append(
                element("text", f"{tick:,g}", x=x, y=HEIGHT - _BOTTOM + 18, class_="tick middle")
            )
    parts.append(
        element("text", x_title, x=(_LEFT + WIDTH - _RIGHT) / 2, y=HEIGHT - 4, class_="tick middle")
    )
    labels = []
    for s in finite:
        at = [place(x, y) for x, y in s.points]
        classes = f"s{s.colour}" + " faint" * s.faint + " dotted" * s.dotted
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in at)
        parts.append(element("polyline", points=path, class_=f"curve {classes}"))
        if s.dotted:
            parts.extend(
                element("circle", cx=x, cy=y, r=2.6, class_=f"dot {classes}") for x, y in at
            )
        if not s.faint:
            labels.append((at[-1][1], f"{s.name} {s.points[-1][1]:.3g}", s.colour))
    parts.extend(
        element("text", text, x=WIDTH - _RIGHT + 8, y=y + 4, class_=f"label s{colour}")
        for y, text, colour in _spread(labels)
    )
    return element(
        "svg", *parts, viewBox=f"0 0 {WIDTH} {HEIGHT}", role="img", aria_label=description
    )


def bar_chart(
    rows: Sequence[tuple[str, Sequence[tuple[float, str]]]], *, description: str, full: float
) -> Markup:
    """Horizontal bars: each row is a name and one (value, text beside the bar) per series."""
    thick = 16 if max(len(bars) for _, bars in rows) == 1 else 10
    left = 24 + 7 * max(len(_clipped(name)) for name, _ in rows)
    span = WIDTH - left - 150
    parts, y = [], 6.0
    for name, bars in rows:
        middle = y + thick * len(bars) / 2 + 4
        parts.append(element("text", _clipped(name), x=left - 10, y=middle, class_="tick end"))
        for colour, (value, text) in enumerate(bars):
            length = span * min(max(value / full, 0.0), 1.0) if full > 0 else 0.0
            parts.append(element("rect", x=left, y=y, width=span, height=thick - 2, class_="track"))
            parts.append(
                element(
                    "rect", x=left, y=y, width=length, height=thick - 2, class_=f"bar s{colour % 6}"
                )
            )
            parts.append(
                element("text", text, x=left + span + 8, y=y + thick / 2 + 3, class_="tick")
            )
            y += thick
        y += 9
    return element("svg", *parts, viewBox=f"0 0 {WIDTH} {y:g}", role="img", aria_label=description)


def meter(share: float, *, colour: int) -> Markup:
    """A bar the height of a line of text, filled to `share` (0..1)."""
    length, height = 90, 9
    return element(
        "svg",
        element("rect", width=length, height=height, rx=2, class_="track"),
        element("rect", width=length * share, height=height, rx=2, class_=f"bar s{colour % 6}"),
        viewBox=f"0 0 {length} {height}",
        class_="meter",
        role="img",
        aria_label=f"{share:.0%}",
    )


def nice_ticks(low: float, high: float, count: int) -> list[float]:
    """About `count` round numbers that enclose [low, high]."""
    span = (high - low) or abs(high) or 1.0
    raw = span / count
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(power * m for m in (1, 2, 2.5, 5, 10) if power * m >= raw * 0.999)
    first = math.floor(low / step + 1e-9)
    last = max(math.ceil(high / step - 1e-9), first + 1)
    return [round(i * step, 12) for i in range(first, last + 1)]


def _thinned(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """At most `_MAX_POINTS` points, the last one always among them."""
    stride = max(1, math.ceil(len(points) / _MAX_POINTS))
    kept = list(points[::stride])
    if points and kept[-1] != points[-1]:
        kept.append(points[-1])
    return kept


def _spread(labels: list[tuple[float, str, int]]) -> list[tuple[float, str, int]]:
    """Moves labels down until none covers another, then all back up if they left the chart."""
    placed: list[tuple[float, str, int]] = []
    for y, text, colour in sorted(labels):
        floor = placed[-1][0] + _LABEL_GAP if placed else -math.inf
        placed.append((max(y, floor), text, colour))
    excess = max(0.0, placed[-1][0] - (HEIGHT - _BOTTOM)) if placed else 0.0
    return [(y - excess, text, colour) for y, text, colour in placed]


def _clipped(name: str) -> str:
    return name if len(name) <= 28 else name[:27] + "…"
