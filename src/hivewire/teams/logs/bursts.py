"""Minutes in which far more was logged than around them.

For each minute, x is its count, m the median of the 61 minutes around it (those without a line count 0) and
MAD the median of |x - m| over the same minutes. The score is the robust z-score of Iglewicz and Hoaglin ("How
to Detect and Handle Outliers", 1993), (x - m) / (1.4826 * MAD), with a floor for the divisor: counts of
independent events with mean m vary by the square root of m even where the MAD says 0. So

    score = (x - m) / max(1.4826 * MAD, sqrt(m), 1)

and a minute belongs to a burst when its score is at least 6 and x is at least m + 10. Minutes at most 2 apart are one
burst. A burst that fills more than half of the hour around it is the new normal and is not seen. The rule
reads merged counts only, so it cannot depend on how the files were split.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from statistics import median
from typing import Final

import msgspec

from hivewire.teams.logs.mining import GRAVE, PieceSummary

AROUND: Final = 30  # minutes on either side
LEAST_SCORE: Final = 6.0
LEAST_EXCESS: Final = 10
_LARGEST_GAP: Final = 2
_LEAST_ACTIVE: Final = 15  # of the 61 minutes: where lines are rare, any line at all would be a burst of lines


class Burst(msgspec.Struct, frozen=True, kw_only=True):
    """Minutes `start` to `end` (of the epoch, both included) with many more lines than usual.

    `kind` is `errors` (error and fatal lines) or `lines` (all others). `usual` is the median a minute at the
    peak. `template` is the most frequent error template, "" for bursts of lines.
    """

    kind: str
    start: int
    end: int
    lines: int
    peak: int
    usual: float
    score: float
    template: str = ""


def find_bursts(summary: PieceSummary) -> list[Burst]:
    """The bursts of errors and of other lines, by time."""
    errors = {minute: sum(counts.get(name, 0) for name in GRAVE) for minute, counts in summary.minutes.items()}
    lines = {minute: sum(counts.values()) - errors[minute] for minute, counts in summary.minutes.items()}
    found = [
        msgspec.structs.replace(burst, template=_leading(summary, burst))
        for burst in _bursts("errors", errors, least_active=0)
    ]
    found += _bursts("lines", lines, least_active=_LEAST_ACTIVE)
    return sorted(found, key=lambda burst: (burst.start, burst.kind))


def _bursts(kind: str, series: Mapping[int, int], *, least_active: int) -> list[Burst]:
    scored = {minute: _scored(series, minute, least_active) for minute in sorted(series) if series[minute]}
    hot = [minute for minute, (score, _) in scored.items() if score >= LEAST_SCORE]
    groups: list[list[int]] = []
    for minute in hot:
        if groups and minute - groups[-1][-1] <= _LARGEST_GAP:
            groups[-1].append(minute)
        else:
            groups.append([minute])
    found = []
    for group in groups:
        peak = max(group, key=lambda minute: (series[minute], -minute))
        lines = sum(series.get(minute, 0) for minute in range(group[0], group[-1] + 1))
        score, usual = scored[peak]
        found.append(
            Burst(kind=kind, start=group[0], end=group[-1], lines=lines, peak=series[peak], usual=usual, score=score)
        )
    return found


def _scored(series: Mapping[int, int], minute: int, least_active: int) -> tuple[float, float]:
    """Score and usual count of a minute; the score is 0 where the rule does not apply."""
    count = series[minute]
    if count < LEAST_EXCESS:
        return 0.0, 0.0
    around = [series.get(other, 0) for other in range(minute - AROUND, minute + AROUND + 1)]
    usual = float(median(around))
    if count < usual + LEAST_EXCESS or sum(map(bool, around)) < least_active:
        return 0.0, usual
    deviation = float(median([abs(other - usual) for other in around]))
    return (count - usual) / max(1.4826 * deviation, math.sqrt(usual), 1.0), usual


def _leading(summary: PieceSummary, burst: Burst) -> str:
    within = {
        text: sum(count for minute, count in minutes.items() if burst.start <= minute <= burst.end)
        for text, minutes in summary.grave_minutes.items()
    }
    return min(within, key=lambda text: (-within[text], text), default="")
