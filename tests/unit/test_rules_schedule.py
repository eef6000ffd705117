"""What a schedule owes, against a list of all its times."""

from __future__ import annotations

from datetime import UTC

from hypothesis import given
from hypothesis import strategies as st

from hivewire.rules.cron import Cron
from hivewire.rules.schedule import ON_TIME_S, Calendar, CatchUp, Every, owed

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
