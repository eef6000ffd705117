"""Bursts stand out; the usual ups and downs do not."""

from __future__ import annotations

import random

from hivewire.teams.logs.bursts import find_bursts
from hivewire.teams.logs.mining import PieceSummary

START = 29_555_000


def summary(errors: dict[int, int], lines: dict[int, int] | None = None) -> PieceSummary:
    found = PieceSummary()
    for minute in errors.keys() | (lines or {}).keys():
        counts = {"error": errors.get(minute, 0), "info": (lines or {}).get(minute, 0)}
        found.minutes[START + minute] = {name: count for name, count in counts.items() if count}
    found.grave_minutes = {"it failed": {START + minute: count for minute, count in errors.items()}}
    return found


def test_minutes_next_to_each_other_are_one_burst_with_its_numbers() -> None:
    errors = dict.fromkeys(range(120), 1) | {60: 40, 61: 70, 63: 50}
    (burst,) = find_bursts(summary(errors))
    assert (burst.kind, burst.start - START, burst.end - START) == ("errors", 60, 63)
    assert (burst.lines, burst.peak, burst.usual, burst.template) == (161, 70, 1.0, "it failed")


def test_bursts_apart_are_two() -> None:
    errors = dict.fromkeys(range(120), 1) | {60: 40, 63: 40}
    assert [burst.start - START for burst in find_bursts(summary(errors))] == [60, 63]


def test_noise_is_no_burst() -> None:
    chance = random.Random(7)
    errors = {minute: sum(chance.random() < 0.3 for _ in range(20)) for minute in range(600)}
    lines = {minute: 100 + int(chance.gauss(0, 10)) for minute in range(600)}
    assert find_bursts(summary(errors, lines)) == []


def test_a_few_errors_where_there_are_none_are_no_burst_but_many_are() -> None:
    assert find_bursts(summary({60: 9})) == []
    assert len(find_bursts(summary({60: 12}))) == 1


def test_rare_lines_are_no_burst_of_lines() -> None:
    assert find_bursts(summary({}, {0: 500, 3000: 800})) == []


def test_a_doubled_rate_of_lines_is_a_burst_of_lines() -> None:
    lines = dict.fromkeys(range(120), 100) | {60: 300}
    (burst,) = find_bursts(summary({}, lines))
    assert (burst.kind, burst.lines, burst.template) == ("lines", 300, "")


def test_nothing_at_all() -> None:
    assert find_bursts(PieceSummary()) == []
