"""Cron expressions, against a model that looks at every minute."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, tzinfo
from unittest.mock import patch
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hivewire.rules.cron import Cron

BERLIN, NEW_YORK, LORD_HOWE = ZoneInfo("Europe/Berlin"), ZoneInfo("America/New_York"), ZoneInfo("Australia/Lord_Howe")
APIA, KATHMANDU = ZoneInfo("Pacific/Apia"), ZoneInfo("Asia/Kathmandu")
MINUTE = timedelta(minutes=1)


def _numbers(text: str, least: int, most: int) -> set[int]:
    """Of a field that the strategies below make: numbers, `*`, `a-b`, `*/n`, in lists."""
    found = set()
    for part in text.split(","):
        span, _, step = part.partition("/")
        low, _, high = span.partition("-")
        chosen = range(least, most + 1) if span == "*" else range(int(low), int(high or low) + 1)
        found |= {number for place, number in enumerate(chosen) if place % int(step or 1) == 0}
    return found


def model(expression: str, moment: datetime, zone: tzinfo, hours: int) -> datetime | None:
    """Every minute on the wall of the days around, each mapped to when it is due; the first after the moment."""
    minute, hour, day, month, weekday = expression.split()
    minutes, hour_set, months = _numbers(minute, 0, 59), _numbers(hour, 0, 23), _numbers(month, 1, 12)
    days, weekdays = _numbers(day, 1, 31), {n % 7 for n in _numbers(weekday, 0, 6)}
    is_every_hour = hour_set == set(range(24))
    due = set()
    local = (moment.astimezone(zone) - timedelta(hours=26)).replace(tzinfo=None, second=0, microsecond=0)
    for _ in range((hours + 52) * 60):
        in_days, in_week = local.day in days, local.isoweekday() % 7 in weekdays
        day_fits = (in_days and in_week) if "*" in (day[0], weekday[0]) else (in_days or in_week)
        if day_fits and local.minute in minutes and local.hour in hour_set and local.month in months:
            first, second = (local.replace(tzinfo=zone, fold=fold).astimezone(UTC) for fold in (0, 1))
            exists = first.astimezone(zone).replace(tzinfo=None) == local
            if exists or not is_every_hour:
                due.add(first)
            if exists and is_every_hour:
                due.add(second)
        local += MINUTE
    later = [at for at in due if at > moment]
    return min(later) if later else None


def _parts(least: int, most: int) -> st.SearchStrategy[str]:
    number = st.integers(least, most)
    span = st.tuples(number, number).map(lambda ends: f"{min(ends)}-{max(ends)}")
    step = st.integers(1, min(most, 20)).map(lambda n: f"*/{n}")
    return st.lists(st.one_of(number.map(str), span, step), min_size=1, max_size=2).map(",".join)


_often = st.tuples(
    st.one_of(st.just("*"), _parts(0, 59)),
    st.one_of(st.just("*"), st.just("2"), _parts(0, 23)),
    st.one_of(st.just("*"), _parts(1, 31)),
    st.just("*"),
    st.one_of(st.just("*"), _parts(0, 6)),
).map(" ".join)
_moments = st.one_of(
    # Around the nights in which clocks are moved, and anywhere.
    st.sampled_from(
        [
            (datetime(2026, 3, 29, 0, 30, tzinfo=UTC), BERLIN),
            (datetime(2026, 10, 25, 0, 30, tzinfo=UTC), BERLIN),
            (datetime(2026, 3, 8, 6, 30, tzinfo=UTC), NEW_YORK),
            (datetime(2026, 11, 1, 5, 30, tzinfo=UTC), NEW_YORK),
            (datetime(2026, 4, 4, 14, 30, tzinfo=UTC), LORD_HOWE),
            (datetime(2026, 10, 3, 15, 0, tzinfo=UTC), LORD_HOWE),
            (datetime(2011, 12, 30, 9, 0, tzinfo=UTC), APIA),
        ]
    ),
    st.tuples(
        st.datetimes(datetime(2020, 1, 1), datetime(2035, 1, 1), timezones=st.just(UTC)),  # noqa: DTZ001
        st.sampled_from([UTC, BERLIN, NEW_YORK, KATHMANDU]),
    ),
)


@settings(deadline=None, max_examples=60)
@given(_often, _moments, st.integers(-2_000, 2_000))
def test_the_next_time_is_that_of_the_model(
    expression: str, moment_and_zone: tuple[datetime, tzinfo], minutes: int
) -> None:
    moment, zone = moment_and_zone
    moment += minutes * MINUTE
    hours = 60
    expected = model(expression, moment, zone, hours)
    found = Cron(expression).after(moment, zone)
    if expected is None or expected > moment + timedelta(hours=hours - 27):
        assert found > moment + timedelta(hours=hours - 54)
    else:
        assert found == expected


@settings(deadline=None, max_examples=60)
@given(_often, _moments)
def test_each_time_is_later_than_the_one_before(expression: str, moment_and_zone: tuple[datetime, tzinfo]) -> None:
    moment, zone = moment_and_zone
    cron = Cron(expression)
    for _ in range(3):
        following = cron.after(moment, zone)
        assert following > moment
        moment = following


def _after(expression: str, moment: str, zone: tzinfo = BERLIN, times: int = 1) -> list[str]:
    cron, at = Cron(expression), datetime.fromisoformat(moment)
    found = []
    for _ in range(times):
        at = cron.after(at, zone)
        found.append(at.astimezone(zone).isoformat(timespec="minutes"))
    return found


def test_clocks_put_forward() -> None:
    # 02:30 does not exist on that day: it is due an hour later on the wall, half an hour after the jump.
    assert _after("30 2 * * *", "2026-03-28T12:00+01:00", times=2) == [
        "2026-03-29T03:30+02:00", "2026-03-30T02:30+02:00",
    ]  # fmt: skip
    assert _after("*/30 * * * *", "2026-03-29T01:30+01:00", times=2) == [
        "2026-03-29T03:00+02:00", "2026-03-29T03:30+02:00",
    ]  # fmt: skip
    # 02:00 and 03:00 are the same moment: one firing.
    assert _after("0 2,3 * * *", "2026-03-29T00:00+01:00", times=2) == [
        "2026-03-29T03:00+02:00", "2026-03-30T02:00+02:00",
    ]  # fmt: skip


def test_clocks_put_back() -> None:
    assert _after("30 2 * * *", "2026-10-24T12:00+02:00", times=2) == [
        "2026-10-25T02:30+02:00", "2026-10-26T02:30+01:00",
    ]  # fmt: skip
    assert _after("30 * * * *", "2026-10-25T01:30+02:00", times=3) == [
        "2026-10-25T02:30+02:00", "2026-10-25T02:30+01:00", "2026-10-25T03:30+01:00",
    ]  # fmt: skip


def test_in_the_hour_that_comes_twice_the_earlier_time_goes_first() -> None:
    # On the wall 02:10 comes before 02:50, but its second time does not come before the first time of that.
    assert _after("10,50 * * * *", "2026-10-25T00:30+00:00", times=4) == [
        "2026-10-25T02:50+02:00", "2026-10-25T02:10+01:00", "2026-10-25T02:50+01:00", "2026-10-25T03:10+01:00",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("expression", "same"),
    [
        ("@hourly", "0 * * * *"),
        ("@daily", "0 0 * * *"),
        ("@weekly", "0 0 * * sun"),
        ("@monthly", "0 0 1 * *"),
        ("@yearly", "0 0 1 jan *"),
        ("0 0 * * 7", "0 0 * * 0"),
        ("0 0 * * 5-7", "0 0 * * fri,sat,sun"),
        ("5/20 * * * *", "5,25,45 * * * *"),
        ("0 0 ? * MON", "0 0 * * 1"),
        ("  0   12 1-3 JAN,dec * ", "0 12 1,2,3 1,12 *"),
    ],
)
def test_ways_to_say_the_same(expression: str, same: str) -> None:
    assert _after(expression, "2026-05-01T10:17+00:00", UTC, 9) == _after(same, "2026-05-01T10:17+00:00", UTC, 9)


def test_one_of_both_kinds_of_day_is_enough() -> None:
    assert _after("0 0 13 * fri", "2026-03-01T00:00+00:00", UTC, 4) == [
        "2026-03-06T00:00+00:00", "2026-03-13T00:00+00:00", "2026-03-20T00:00+00:00", "2026-03-27T00:00+00:00",
    ]  # fmt: skip


def test_the_29th_of_february_may_be_eight_years_away() -> None:
    assert _after("0 0 29 2 *", "2096-03-01T00:00+00:00", UTC) == ["2104-02-29T00:00+00:00"]


def test_the_29th_of_february_on_a_sunday_may_be_forty_years_away() -> None:
    assert _after("0 0 29 2 */7", "2088-03-01T00:00+00:00", UTC) == ["2128-02-29T00:00+00:00"]


@pytest.mark.parametrize("day", ["2026-10-24T12:00+00:00", "2026-10-25T00:30+00:00", "2026-10-25T12:00+00:00"])
def test_what_is_due_every_minute_is_found_at_once_though_clocks_are_moved(day: str) -> None:
    """What was missed is found one by one, on the event loop."""
    cron, looked_at = Cron("* * * * *"), 0
    instants = cron._instants

    def count(local: datetime, zone: tzinfo) -> list[datetime]:
        nonlocal looked_at
        looked_at += 1
        return instants(local, zone)

    with patch.object(cron, "_instants", count):
        cron.after(datetime.fromisoformat(day), BERLIN)
    assert looked_at <= 2 * 60 + 2


@pytest.mark.parametrize(
    ("expression", "says"),
    [
        ("", "0 fields"),
        ("* * * *", "4 fields"),
        ("* * * * * *", "6 fields"),
        ("60 * * * *", "minute '60' is not a number from 0 to 59"),
        ("* 24 * * *", "hour '24'"),
        ("* * 0 * *", "day of the month '0'"),
        ("* * 32 * *", "day of the month '32' is not a number from 1 to 31"),
        ("0005 * * * *", "minute '0005'"),
        ("* * * 13 *", "month '13' is not a number from 1 to 12, or jan to dec"),
        ("* * * * 8", "weekday '8' is not a number from 0 to 7, or sun to sat"),
        ("5-1 * * * *", "runs backwards"),
        ("*/0 * * * *", "minute '0' is not a number from 1 to 59"),
        ("1,,2 * * * *", "minute ''"),
        ("a * * * *", "minute 'a'"),
        ("-1 * * * *", "minute ''"),
        ("1/ * * * *", "minute ''"),
        ("٣ * * * *", "minute '٣'"),
        ("0 0 30 2 *", "does not exist"),
        ("0 0 31 feb,apr,jun *", "does not exist"),
        ("@reboot", "1 fields"),
    ],
)
def test_what_is_refused(expression: str, says: str) -> None:
    with pytest.raises(ValueError) as caught:
        Cron(expression)
    assert says in str(caught.value)
