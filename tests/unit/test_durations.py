"""Durations as in Go, and as plain seconds."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hivewire.durations import format_duration, parse_duration


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("24h", 86400), ("168h", 604800), ("1h30m", 5400), ("1h0m0.5s", 3600.5), ("500ms", 0.5), ("2m", 120), ("5s", 5),
        ("1.5h", 5400), (".5s", 0.5), ("5.s", 5), ("100us", 0.0001), ("100µs", 0.0001), ("100\u03bcs", 0.0001),
        ("1ns", 1e-9), ("7d", 604800), ("10", 10), ("0.25", 0.25), ("0", 0), ("-5s", -5), ("+5s", 5), (" 5s ", 5),
        ("1e3", 1000),
    ],
)  # fmt: skip
def test_forms_that_are_read(text: str, seconds: float) -> None:
    assert parse_duration(text) == pytest.approx(seconds, rel=1e-12)


@pytest.mark.parametrize(
    "text",
    ["", " ", "s", "h", "5 s", "1h 30m", "5x", "5S", "5sec", "1h30", "--5s", "5s5", "nan", "inf", "-inf", "five",
     "5,5s", "1:30", "\u0665s", "5s\n5", "1" * 200 + "s", "9" * 400, "."],
)  # fmt: skip
def test_forms_that_are_refused(text: str) -> None:
    with pytest.raises(ValueError):
        parse_duration(text)


@given(st.integers(0, 10**8) | st.integers(0, 999).map(lambda ms: ms / 1000))
def test_what_is_written_is_read(seconds: float) -> None:
    assert parse_duration(format_duration(seconds)) == pytest.approx(seconds)
