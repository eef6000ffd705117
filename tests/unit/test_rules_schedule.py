"""What a schedule owes, against a list of all its times."""

from __future__ import annotations

from datetime import UTC

from hypothesis import given
from hypothesis import strategies as st

from hivewire.rules.cron import Cron
from hivewire.rules.schedule import ON_TIME_S, Calendar, CatchUp, Every, Owed, owed

_catch_up: st.SearchStrategy[CatchUp] = st.sampled_from(("one", "all", "none"))


@given(
    every_s=st.integers(1, 200),
    anchor=st.integers(-500, 500),
    number=st.integers(1, 20),
    later=st.integers(-300, 5_000),
    catch_up=_catch_up,
)
def test_what_is_owed(every_s: int, anchor: int, number: int, later: int, catch_up: CatchUp) -> None:
    next_at, now = float(anchor + number * every_s), float(anchor + number * every_s + later)
    due = [float(at) for at in range(anchor, int(now) + 1, every_s) if next_at <= at <= now]
    found = owed(Every(float(every_s), float(anchor)), next_at, now, catch_up)
    if not due:
        assert (found.fire, found.missed, found.next_at) == ((), 0, next_at)
        return
    if catch_up == "all":
        assert found.fire == tuple(due[:100])
        assert found.missed == 0
    elif catch_up == "one" or now - due[-1] <= ON_TIME_S:
        assert (found.fire, found.missed) == ((due[-1],), min(len(due) - 1, 1_000))
    else:
        assert (found.fire, found.missed) == ((), min(len(due), 1_000))
    assert found.next_at == (found.fire[-1] if catch_up == "all" else due[-1]) + every_s


@given(st.floats(0.1, 1e6), st.floats(0, 2e9), st.floats(0, 4e9))
def test_every_is_after_and_not_far_after(every_s: float, anchor: float, moment: float) -> None:
    due = Every(every_s, anchor).after(moment)
    assert moment < due <= moment + every_s * 1.001 + 1e-6


def test_a_year_away_is_caught_up_at_once() -> None:
    minutely = Calendar(Cron("* * * * *"), UTC)
    found = owed(minutely, 60.0, 366 * 86_400 + 30.0, "one")
    assert found.fire == (366 * 86_400.0,)
    assert found.missed == 1_000
    assert found.next_at == 366 * 86_400 + 60.0


def test_seldom_and_late() -> None:
    yearly = Calendar(Cron("@yearly"), UTC)
    new_year_1971, new_year_1973 = 365 * 86_400.0, 3 * 365 * 86_400.0 + 86_400
    found = owed(yearly, new_year_1971, new_year_1973 + 5, "one")
    assert (found.fire, found.missed) == ((new_year_1973,), 2)


SECONDLY = Every(1.0, 0.0)


def test_all_is_a_hundred_at_a_time() -> None:
    for due, fired in ((99, 99), (100, 100), (101, 100), (250, 100)):
        found = owed(SECONDLY, 1.0, float(due), "all")
        assert found.fire == tuple(float(at) for at in range(1, fired + 1))
        assert (found.missed, found.next_at) == (0, fired + 1.0)


def test_of_very_many_a_thousand_are_counted() -> None:
    for due, missed in ((1, 0), (2, 1), (1_001, 1_000), (1_002, 1_000), (5_000, 1_000)):
        assert owed(SECONDLY, 1.0, due + 0.5, "one") == Owed((float(due),), missed, due + 1.0)
    minutely = Every(100.0, 0.0)
    for due, missed in ((1, 1), (999, 999), (1_000, 1_000), (1_001, 1_000)):
        assert owed(minutely, 100.0, due * 100.0 + 99.0, "none") == Owed((), missed, due * 100.0 + 100.0)


def test_on_time_is_within_a_minute() -> None:
    hourly = Every(3_600.0, 0.0)
    assert owed(hourly, 3_600.0, 3_599.9, "none") == Owed((), 0, 3_600.0)
    assert owed(hourly, 3_600.0, 3_600.0, "none") == Owed((3_600.0,), 0, 7_200.0)
    assert owed(hourly, 3_600.0, 3_660.0, "none") == Owed((3_600.0,), 0, 7_200.0)
    assert owed(hourly, 3_600.0, 3_660.1, "none") == Owed((), 1, 7_200.0)
    assert owed(hourly, 3_600.0, 7_260.0, "none") == Owed((7_200.0,), 1, 10_800.0)


def test_every_has_no_time_between_two() -> None:
    every = Every(10.0, 3.0)
    assert [every.after(moment) for moment in (-7.1, -7.0, 2.9, 3.0, 12.9, 13.0)] == [-7.0, 3.0, 3.0, 13.0, 13.0, 23.0]
    for anchor in (0.0, 1_800_000_000.3):
        tenth, moment = Every(0.1, anchor), anchor
        for number in range(1, 500):
            moment = tenth.after(moment)
            assert abs(moment - anchor - number / 10) < 2e-6
