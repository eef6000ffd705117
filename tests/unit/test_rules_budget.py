"""Budgets as rules: what was granted never passes the limit, whatever happens to those who hold it."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hivewire.rules.budget import FREE, NANO, Account, Cost, Held, Limit, Price, shares

COSTS = st.builds(Cost, st.integers(0, 50), st.integers(0, 50), st.just(1))
STEPS = st.lists(
    st.tuples(st.sampled_from(["reserve", "settle", "release", "wait"]), st.integers(0, 4), COSTS, st.integers(0, 9)),
    max_size=60,
)


@given(STEPS, st.integers(1, 120), st.integers(1, 120), st.integers(1, 8))
def test_what_is_spent_and_reserved_stays_within_the_limit(
    steps: list[tuple[str, int, Cost, int]], tokens: int, nano: int, calls: int
) -> None:
    """Against a book of every call: each granted one is open, settled for at most what it held, released, or dead."""
    limit = Limit(tokens=tokens, money=nano / NANO, calls=calls)
    account, now = Account(), 0.0
    opened: dict[str, tuple[Cost, float]] = {}
    spent = Cost()
    for number, (kind, which, cost, pause) in enumerate(steps):
        now += pause
        for name in [name for name, (_, ends_at) in opened.items() if ends_at <= now]:
            spent += opened.pop(name)[0]  # its holder died
        name = list(opened)[which % len(opened)] if opened else "nobody"
        if kind == "reserve":
            used = sum((held for held, _ in opened.values()), spent)
            fits = (
                used.tokens + cost.tokens <= tokens
                and used.money_nano + cost.money_nano <= nano
                and used.calls + cost.calls <= calls
            )
            refused = account.reserve(f"r{number}", cost, limit, now, lease_s=10.0)
            assert (refused is None) is fits
            if fits:
                opened[f"r{number}"] = (cost, now + 10.0)
        elif kind == "settle" and opened:
            held = opened.pop(name)[0]
            actual = Cost(min(cost.tokens, held.tokens), min(cost.money_nano, held.money_nano), 1)
            account.expire(now)
            account.settle(name, actual)
            spent += actual
        elif kind == "release" and opened:
            opened.pop(name)
            account.expire(now)
            account.release(name)
        account.expire(now)
        assert account.spent == spent
        assert account.reserved == sum((held for held, _ in opened.values()), Cost())
        total = account.spent + account.reserved
        assert total.tokens <= tokens
        assert total.calls <= calls


def test_a_settlement_that_comes_after_the_end_is_not_counted_twice() -> None:
    account = Account()
    assert account.reserve("a", Cost(10, 0, 1), Limit(tokens=10), 0.0, lease_s=5.0) is None
    account.expire(5.0)
    account.settle("a", Cost(7, 0, 1))
    account.settle("a", Cost(7, 0, 1))
    assert account.spent == Cost(10, 0, 1)


def test_a_refusal_says_what_is_short() -> None:
    account = Account()
    limit = Limit(tokens=10, wall_s=60.0)
    assert account.reserve("a", Cost(8), limit, 100.0, 600.0) is None
    refusal = account.reserve("b", Cost(3), limit, 100.0, 600.0)
    assert refusal is not None
    assert (refusal.what, refusal.limit, refusal.used, refusal.asked) == ("tokens", 10, 8, 3)
    late = account.reserve("c", Cost(1), limit, 161.0, 600.0)
    assert late is not None
    assert late.what == "wall_s"


@given(st.integers(0, 10_000_000), st.integers(0, 10_000_000), st.floats(0, 1_000), st.floats(0, 1_000))
def test_money_is_rounded_up_and_by_less_than_a_billionth(
    into: int, out: int, price_in: float, price_out: float
) -> None:
    cost = Price(price_in, price_out).cost(into, out)
    exact = (into * price_in + out * price_out) * 1000
    assert 0 <= cost.money_nano - exact <= 1 + exact * 1e-12
    assert FREE.cost(into, out) == Cost(into + out, 0, 1)


@given(st.integers(0, 10_000), st.dictionaries(st.text("abc", min_size=1, max_size=3), st.floats(0, 100), min_size=1))
def test_shares_add_up(tokens: int, weights: dict[str, float]) -> None:
    if sum(weights.values()) <= 0:
        with pytest.raises(ValueError, match="weights"):
            shares(Limit(tokens=tokens), weights)
        return
    parts = shares(Limit(tokens=tokens, money=1.0, wall_s=5.0), weights)
    assert sum(part.tokens or 0 for part in parts.values()) == tokens
    assert sum(part.money or 0 for part in parts.values()) == pytest.approx(1.0)
    assert all(part.calls is None and part.wall_s == 5.0 for part in parts.values())


def test_who_reserves_finds_out_who_has_died() -> None:
    account = Account()
    assert account.reserve("a", Cost(10, 0, 1), None, 0.0, lease_s=5.0) is None
    assert account.reserve("b", Cost(1, 0, 1), None, 6.0, lease_s=5.0) is None
    assert account.spent == Cost(10, 0, 1)
    account.settle("a", Cost(7, 0, 1))
    assert account.spent == Cost(10, 0, 1)
    assert list(account.held) == ["b"]


def test_the_time_counts_from_the_first_reservation() -> None:
    account, limit = Account(), Limit(wall_s=60.0)
    for number, now in enumerate((100.0, 120.0, 160.0)):
        assert account.reserve(f"r{number}", Cost(1), limit, now, 600.0) is None
    refusal = account.reserve("late", Cost(1), limit, 160.5, 600.0)
    assert refusal is not None
    assert (refusal.what, refusal.limit, refusal.used, refusal.asked) == ("wall_s", 60.0, 60.5, 0.0)


def test_the_stored_form_is_a_list_and_a_price_has_no_other_fields() -> None:
    assert msgspec.json.encode(Held(Cost(1, 2, 3), 4.5)) == b"[[1,2,3],4.5]"
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert({"input": 1.0, "output": 2.0, "outputs": 3.0}, Price)


def test_no_weight_is_negative() -> None:
    with pytest.raises(ValueError, match="none of them negative"):
        shares(Limit(tokens=10), {"a": 5.0, "b": -1.0})
