"""Charts as inline SVG. They scale with the page; their labels are HTML, so they stay readable on a phone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Final

import msgspec

from hivewire.teams.logs.bursts import Burst
from hivewire.teams.logs.masking import SEVERITIES

_MOST_BINS: Final = 180
_STEPS: Final = (1, 2, 5, 10, 15, 30, 60, 120, 360, 720, 1440, 2880, 10_080, 43_200, 131_400, 525_600)
_MOST_OF_LINES: Final = 0.95
_TICKS: Final = 5
HEIGHT: Final = 100  # of the drawing, in its own units


class Window(msgspec.Struct, frozen=True):
    """The minutes `start` to `end` (excluded) that a chart shows, `step` minutes a bar."""

    start: int
    end: int
    step: int
    outside: int  # timed lines that it does not show


def choose_window(per_minute: Mapping[int, int]) -> Window | None:
    """The whole time when it is dense; else the shortest part of it that holds 95 % of the lines.

    One old file among the logs of today would otherwise squeeze today into one bar.
    """
    minutes = sorted(per_minute)
    if not minutes:
        return None
    total = sum(per_minute.values())
    best = first, last = minutes[0], minutes[-1]
    left, held = 0, 0
    for minute in minutes:
        held += per_minute[minute]
        while held - per_minute[minutes[left]] >= _MOST_OF_LINES * total:
            held -= per_minute[minutes[left]]
            left += 1
        if held >= _MOST_OF_LINES * total and minute - minutes[left] < best[1] - best[0]:
            best = (minutes[left], minute)
    if 3 * (best[1] - best[0]) >= last - first:
        best = (first, last)
    span = best[1] - best[0] + 1
    step = next((step for step in _STEPS if span <= step * _MOST_BINS), _STEPS[-1])
    start, end = best[0] // step * step, (best[1] // step + 1) * step
    inside = sum(count for minute, count in per_minute.items() if start <= minute < end)
    return Window(start, end, step, total - inside)


def bins(minutes: Mapping[int, Mapping[str, int]], window: Window) -> list[dict[str, int]]:
    """Lines by severity in each bar of the window."""
    found: list[dict[str, int]] = [{} for _ in range(window.start, window.end, window.step)]
    for minute, counts in minutes.items():
        if window.start <= minute < window.end:
            bar = found[(minute - window.start) // window.step]
            for severity, count in counts.items():
                bar[severity] = bar.get(severity, 0) + count
    return found


def nice_top(highest: int) -> int:
    """The end of an axis: the next number of the form 1, 2, 4, 5, 6, 8 times a power of ten."""
    size = 1
    while True:
        for factor in (1, 2, 4, 5, 6, 8):
            if factor * size >= highest:
                return factor * size
        size *= 10


def timeline(bars: Sequence[Mapping[str, int]], window: Window, names: Sequence[str]) -> str:
    """Stacked bars, the first of `names` at the bottom."""
    top = nice_top(max((sum(bar.get(name, 0) for name in names) for bar in bars), default=1) or 1)
    parts = []
    for index, bar in enumerate(bars):
        height = 0.0
        for name in names:
            if count := bar.get(name, 0):
                size = count / top * HEIGHT
                height += size
                parts.append(f'<rect class="{name}" x="{index}" y="{HEIGHT - height:.2f}" width=".86" height="{size:.2f}"/>')
        if bar:
            told = ", ".join(f"{bar[name]:,} {name}" for name in names if bar.get(name))
            when = clock(window.start + index * window.step)
            parts.append(f'<rect class="hover" x="{index}" y="0" width="1" height="{HEIGHT}"><title>{when}: {told}</title></rect>')
    return (
        f'<svg viewBox="0 0 {max(1, len(bars))} {HEIGHT}" preserveAspectRatio="none" role="img" '
        f'aria-label="lines over time by severity">{"".join(parts)}</svg>'
    )


def ticks(window: Window) -> list[tuple[float, str]]:
    """Place (per cent of the width) and text of the labels of the time axis."""
    span = window.end - window.start
    rough = span / _TICKS
    step = next((step for step in _STEPS if step >= rough), _STEPS[-1])
    first = -(-window.start // step) * step
    # a label at the very end would hang over the edge
    return [
        ((at - window.start) / span * 100, clock(at, brief=span <= 2880))
        for at in range(first, window.end, step)
        if (at - window.start) / span < 0.94
    ]


def burst_marks(found: Sequence[Burst], window: Window) -> list[tuple[float, float, int]]:
    """Left edge and width (per cent) of each burst that the window shows, with its number in the table."""
    span = window.end - window.start
    return [
        ((burst.start - window.start) / span * 100, (burst.end + 1 - burst.start) / span * 100, number)
        for number, burst in enumerate(found, 1)
        if window.start <= burst.start < window.end
    ]


def shares(counts: Mapping[str, int]) -> str:
    """One bar, divided by severity."""
    total = sum(counts.values()) or 1
    parts, left = [], 0.0
    for name in SEVERITIES:
        if count := counts.get(name, 0):
            width = count / total * 100
            parts.append(f'<rect class="{name}" x="{left:.3f}" y="0" width="{width:.3f}" height="10"><title>{name}: {count:,}</title></rect>')
            left += width
    return f'<svg class="shares" viewBox="0 0 100 10" preserveAspectRatio="none" role="img" aria-label="shares of the severities">{"".join(parts)}</svg>'


def bar(count: int, highest: int, severity: str) -> str:
    """A bar as long as its share of the highest."""
    width = max(0.4, count / max(1, highest) * 100)
    return f'<svg class="bar" viewBox="0 0 100 6" preserveAspectRatio="none" aria-hidden="true"><rect class="track" width="100" height="6"/><rect class="{severity}" width="{width:.2f}" height="6"/></svg>'


def clock(minute: int, *, brief: bool = False) -> str:
    """A minute of the epoch, in UTC."""
    moment = datetime.fromtimestamp(minute * 60, UTC)
    if brief:
        return f"{moment:%H:%M}"
    return f"{moment:%Y-%m-%d %H:%M}"
