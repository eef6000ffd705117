"""Memory and space in the store stay flat at 500 messages a second, with failures, delays, dead letters, trail.

Full counts (HIVEWIRE_SOAK=1): ten minutes, less than 1 MB a minute. Sampled: half a minute, in which a leak of a
kilobyte a message would be many times the bound.
"""

from __future__ import annotations

import os

import pytest

from benchmarks.soak import Course, most_per_minute, slope, soak
from tests.needed import needed

RATE = 500
FULL = os.environ.get("HIVEWIRE_SOAK") == "1"
SECONDS = 600 if FULL else 30


def test_the_slope_is_that_of_the_line() -> None:
    assert slope([(0, 1), (1, 3), (2, 5)]) == 2
    assert slope([(0, 1), (1, 2), (2, 1)]) == 0


def test_what_grows_or_is_not_handled_is_found() -> None:
    def course(per_second: float, *, handled: int = 300_000, left: int = 0) -> list[bool]:
        points = [{"t": t, "memory": 5e7, "store": t * per_second, "handled": handled} for t in range(600)]
        return [is_met for _, is_met in Course("sqlite", points, left).findings(600, RATE)]

    assert most_per_minute(600) == 1_000_000
    assert course(16_600) == [True, True, True]
    assert course(16_700) == [True, True, False]
    assert course(0, handled=200_000) == course(0, left=RATE) == [False, True, True]


@pytest.mark.processes
@pytest.mark.slow
@pytest.mark.soak
@pytest.mark.timeout(SECONDS * 2 + 60)
def test_memory_and_space_are_flat() -> None:
    """All at once: they spend their time waiting."""
    with needed():
        courses = soak(["memory", "sqlite", "redis"], SECONDS, RATE)
    found = [finding for course in courses for finding in course.findings(SECONDS, RATE)]
    for text, _ in found:
        print(text)
    assert all(is_met for _, is_met in found), (found, [point["memory"] for point in courses[0].points])
