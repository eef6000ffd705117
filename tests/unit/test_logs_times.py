"""Log times are read to the minute, whatever the format."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hivewire.teams.logs.masking import fold
from hivewire.teams.logs.times import Clock, time_shape

MARCH = int(datetime(2026, 3, 12, 12, tzinfo=UTC).timestamp())


def seconds(line: bytes, modified_at: int = MARCH) -> int | None:
    shape = time_shape(fold(line))
    if shape is None:
        return None
    clock = Clock(modified_at)
    minute = clock.minute(line, shape)
    return None if minute is None else minute * 60 + clock.second(line, shape)


def at(*moment: int) -> int:
    return int(datetime(*moment, tzinfo=UTC).timestamp())  # type: ignore[misc,arg-type]  # the parts of a date


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (b"2026-03-12 10:15:32,123 x", at(2026, 3, 12, 10, 15, 32)),
        (b"2026-03-12T10:15:32Z x", at(2026, 3, 12, 10, 15, 32)),
        (b"2026-03-12T10:15:32.123+01:00 x", at(2026, 3, 12, 9, 15, 32)),
        (b"2026-03-12T10:15:32-0530 x", at(2026, 3, 12, 15, 45, 32)),
        (b"2026-03-12 10:15 x", at(2026, 3, 12, 10, 15)),
        (b'{"ts":"2026-03-12T10:15:32.375Z","level":"info"}', at(2026, 3, 12, 10, 15, 32)),
        (b"worker 7: 2026-03-12 10:15:32 x", at(2026, 3, 12, 10, 15, 32)),
        (b"Mar 12 10:15:32 host x", at(2026, 3, 12, 10, 15, 32)),
        (b"Mar  2 10:15:32 host x", at(2026, 3, 2, 10, 15, 32)),
        (b"Dec 31 23:59:59 host x", at(2025, 12, 31, 23, 59, 59)),
        (b"Feb 29 10:15:32 host x", at(2024, 2, 29, 10, 15, 32)),
        (b"Thu Mar 12 10:15:32 2020 x", at(2020, 3, 12, 10, 15, 32)),
        (b'10.0.0.1 - - [12/Mar/2026:10:15:32 +0200] "GET"', at(2026, 3, 12, 8, 15, 32)),
        (b"2026/03/12 10:15:32 [error] x", at(2026, 3, 12, 10, 15, 32)),
        (b"E0312 10:15:32.123456  77 a.go:1] x", at(2026, 3, 12, 10, 15, 32)),
        (b"1234:M 12 Mar 2026 10:15:32.123 * ready", at(2026, 3, 12, 10, 15, 32)),
        (b"1773310532.123 level=info x", 1773310532),
        (b'{"time":1773310532,"x":1}', 1773310532),
        (b"1773310532123 x", 1773310532),
        (b"2026-13-12 10:15:32 no such month", None),
        (b"26-3-12 10:15:32 folds alike, is none", None),
        (b"9999999999.1 beyond 2100", None),
        (b"12345 x", None),
        (b"no time at all", None),
        (b"", None),
    ],
)
def test_the_usual_formats(line: bytes, expected: int | None) -> None:
    assert seconds(line) == expected


@settings(deadline=None)
@given(st.integers(at(2001, 1, 1), at(2099, 1, 1)))
def test_every_moment_reads_back(moment: int) -> None:
    when = datetime.fromtimestamp(moment, UTC)
    assert seconds(f"{when:%Y-%m-%dT%H:%M:%S}Z x".encode()) == moment
    assert seconds(f"{when:%d/%b/%Y:%H:%M:%S} +0000 x".encode()) == moment
    assert seconds(f"{when:%b} {when.day:2d} {when:%H:%M:%S} host x".encode(), modified_at=moment) == moment


@settings(deadline=None)
@given(st.binary(max_size=120))
def test_any_bytes_have_a_time_or_none(line: bytes) -> None:
    seconds(line.replace(b"\n", b""))
