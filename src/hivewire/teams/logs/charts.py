"""Charts as inline SVG. They scale with the page; their labels are HTML, so they stay readable on a phone."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Final

import msgspec

from hivewire.teams.logs.bursts import Burst
from hivewire.teams.logs.masking import SEVERITIES

_MOST_BINS: Final = 180
_STEPS: Final = (1, 2, 5, 10, 15, 30, 60, 120, 360, 720, 1440, 2880, 10_080, 43_200, 131_400, 525_600)
_MOST_OF_LINES: Final = 0.95
_SILENCE: Final = 60  # minutes
_LEAST_SHOWN: Final = 60  # minutes
_TICKS: Final = 5
_LEAST_APART: Final = 1.5  # per cent of the width
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
    best = _widened(best, minutes)
    missing = max(0, _LEAST_SHOWN - (best[1] - best[0] + 1))  # a few minutes alone would be a few thick blocks
    best = (best[0] - missing // 2, best[1] + missing - missing // 2)
    span = best[1] - best[0] + 1
    step = next((step for step in _STEPS if span <= step * _MOST_BINS), _STEPS[-1])
    start, end = best[0] // step * step, (best[1] // step + 1) * step
    inside = sum(count for minute, count in per_minute.items() if start <= minute < end)
    return Window(start, end, step, total - inside)


def _widened(window: tuple[int, int], minutes: Sequence[int]) -> tuple[int, int]:
    """With all that follows or goes before without a long silence."""
    first, last = window
    for minute in minutes[bisect_left(minutes, last) :]:
        last = minute if minute - last <= _SILENCE else last
    for minute in reversed(minutes[: bisect_left(minutes, first)]):
        first = minute if first - minute <= _SILENCE else first
    return first, last


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
    """The end of an axis: the next round number."""
    size = 1
    while True:
        for factor in (1, 1.5, 2, 2.5, 3, 4, 5, 6, 8):
            if factor * size >= highest:
                return max(1, math.ceil(factor * size))
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
                parts.append(_rect(name, index, HEIGHT - height, 0.86, size))
        if bar:
            told = ", ".join(f"{bar[name]:,} {name}" for name in names if bar.get(name))
            when = clock(window.start + index * window.step)
            parts.append(_rect("hover", index, 0, 1, HEIGHT, f"{when}: {told}"))
    return _svg(max(1, len(bars)), HEIGHT, "lines over time by severity", "".join(parts))


def _rect(name: str, x: float, y: float, width: float, height: float, title: str = "") -> str:
    inside = f"<title>{title}</title>" if title else ""
    return f'<rect class="{name}" x="{x:g}" y="{y:.2f}" width="{width:.3f}" height="{height:.2f}">{inside}</rect>'


def _svg(width: int, height: int, label: str, inside: str, name: str = "") -> str:
    box = f'viewBox="0 0 {width} {height}" preserveAspectRatio="none"'
    return f'<svg class="{name}" {box} role="img" aria-label="{label}">{inside}</svg>'


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


def burst_marks(found: Sequence[Burst], window: Window) -> list[tuple[float, float, str]]:
    """Left edge and width (per cent) of each burst that the window shows, with its number in the table.

    Those that begin at nearly the same place share one mark, or their numbers would lie on one another.
    """
    span = window.end - window.start
    marks: list[tuple[float, float, str]] = []
    for number, burst in enumerate(found, 1):
        left, width = (burst.start - window.start) / span * 100, (burst.end + 1 - burst.start) / span * 100
        if not 0 <= left < 100:
            continue
        if marks and left - marks[-1][0] < _LEAST_APART:
            before, broad, label = marks.pop()
            left, width, text = before, max(broad, left + width - before), f"{label}, {number}"
        else:
            text = str(number)
        marks.append((left, width, text))
    return marks


def shares(counts: Mapping[str, int]) -> str:
    """One bar, divided by severity."""
    total = sum(counts.values()) or 1
    parts, left = [], 0.0
    for name in SEVERITIES:
        if count := counts.get(name, 0):
            width = count / total * 100
            parts.append(_rect(name, left, 0, width, 10, f"{name}: {count:,}"))
            left += width
    return _svg(100, 10, "shares of the severities", "".join(parts), "shares")


def bar(count: int, highest: int, severity: str) -> str:
    """A bar as long as its share of the highest."""
    width = max(0.4, count / max(1, highest) * 100)
    return _svg(100, 6, f"{count:,} lines", _rect("track", 0, 0, 100, 6) + _rect(severity, 0, 0, width, 6), "bar")


def clock(minute: int, *, brief: bool = False) -> str:
    """A minute of the epoch, in UTC."""
    moment = datetime.fromtimestamp(minute * 60, UTC)
    if brief:
        return f"{moment:%H:%M}"
    return f"{moment:%Y-%m-%d %H:%M}"
