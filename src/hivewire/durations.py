"""Durations as people and Go programs write them."""

from __future__ import annotations

import re
from math import isfinite
from typing import Final

_UNITS_S: Final = {
    "ns": 1e-9,
    "us": 1e-6,
    "µs": 1e-6,
    "μs": 1e-6,
    "ms": 1e-3,
    "s": 1.0,
    "m": 60.0,
    "h": 3600.0,
    "d": 86400.0,
}
_part = re.compile(r"([0-9]+\.?[0-9]*|\.[0-9]+)(ns|us|µs|μs|ms|s|m|h|d)")
_whole = re.compile(r"(?:(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:ns|us|µs|μs|ms|s|m|h|d))+").fullmatch


def parse_duration(text: str) -> float:
    """Seconds. `ValueError` for anything else than Go's form (with `d` for days), or a plain number of seconds.

    >>> parse_duration("1h30m"), parse_duration("500ms"), parse_duration("7")
    (5400.0, 0.5, 7.0)
    """
    text = text.strip()
    sign = -1.0 if text.startswith("-") else 1.0
    bare = text[1:] if text[:1] in ("-", "+") else text
    if len(bare) > 100:
        raise ValueError("not a duration: too long")
    if _whole(bare):
        return sign * sum(float(number) * _UNITS_S[unit] for number, unit in _part.findall(bare))
    seconds = float(text)
    if not isfinite(seconds):
        raise ValueError(f"not a duration: {text}")
    return seconds


def format_duration(seconds: float) -> str:
    """The shortest usual form.

    >>> format_duration(5400), format_duration(0.5), format_duration(10)
    ('1h30m', '500ms', '10s')
    """
    if seconds == 0:
        return "0s"
    if seconds < 1:
        return f"{seconds * 1000:g}ms"
    hours, rest = divmod(seconds, 3600)
    minutes, left = divmod(rest, 60)
    parts = ((f"{hours:.0f}h", hours), (f"{minutes:.0f}m", minutes), (f"{left:g}s", left))
    return "".join(text for text, value in parts if value)
