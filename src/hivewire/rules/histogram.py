"""Percentiles of many values in little memory, after HdrHistogram."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Final

_BITS: Final = 7
ERROR: Final = 2.0**-_BITS
"""A percentile is never below the true value and at most this fraction (0.8 %) above it."""


class Histogram:
    """Counts whole numbers from 0 on, in buckets whose width grows with the value.

    Numbers below 256 are exact; above, each power of two has 128 buckets.

    >>> histogram = Histogram()
    >>> for value in range(1, 101):
    ...     histogram.add(value)
    >>> histogram.percentile(50), histogram.percentile(99.9), histogram.most
    (50, 100, 100)
    """

    def __init__(self) -> None:
        self.count = 0
        self.most = 0
        self._buckets: dict[int, int] = {}

    def add(self, value: int, times: int = 1) -> None:
        """Count `value`; a negative one (clocks that disagree) counts as 0."""
        value = max(value, 0)
        self.count += times
        self.most = max(self.most, value)
        index = _index(value)
        self._buckets[index] = self._buckets.get(index, 0) + times

    def merge(self, other: Histogram) -> None:
        """Count all that the other has counted."""
        for index, times in other._buckets.items():
            self._buckets[index] = self._buckets.get(index, 0) + times
        self.count += other.count
        self.most = max(self.most, other.most)

    def percentile(self, percent: float) -> int:
        """The smallest value that at least `percent` of the counted ones do not exceed; 0 without any."""
        wanted = self.count * percent / 100 - 1e-9  # 99.9 % of 1,000 is 999, whatever the float says
        for value, upto in self.steps():
            if upto >= wanted:
                return value
        return self.most

    def steps(self) -> Iterator[tuple[int, int]]:
        """(value, how many are not above it) for each bucket in use, rising."""
        upto = 0
        for index, times in sorted(self._buckets.items()):
            upto += times
            yield min(_highest(index), self.most), upto


def _index(value: int) -> int:
    shift = max(value.bit_length() - _BITS - 1, 0)
    return (shift << _BITS) + (value >> shift)


def _highest(index: int) -> int:
    """The largest value of a bucket."""
    shift = max((index >> _BITS) - 1, 0)
    return ((index - (shift << _BITS) + 1) << shift) - 1


def summary_ms(histogram: Histogram) -> Mapping[str, float]:
    """p50, p95, p99, p99.9 and max in milliseconds, of values counted in microseconds."""
    found = {f"p{percent:g}": histogram.percentile(percent) / 1000 for percent in (50, 95, 99, 99.9)}
    return found | {"max": histogram.most / 1000}
