"""The window of settled ids, against a list of everything that was ever added."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from hivewire.rules.dedup import Keys, Window

_steps = st.lists(st.tuples(st.integers(0, 12), st.floats(0, 40, allow_nan=False)), max_size=60)


@given(size=st.integers(1, 8), seconds=st.floats(1, 60), steps=_steps)
def test_a_key_is_remembered_until_a_bound_is_reached(
    size: int, seconds: float, steps: list[tuple[int, float]]
) -> None:
    window = Window(size, seconds)
    now = 0.0
    added: list[tuple[int, float]] = []
    for key, passed in steps:
        now += passed
        window.add(key, now)
        added.append((key, now))
        for place, (old, at) in enumerate(added):
            since = {later for later, _ in added[place + 1 :]}
            if len(since | {old}) <= size and now - at < seconds:
                assert old in window
        assert len(window) <= 2 * size
        assert set(window) <= {old for old, _ in added}
    for key, _ in added:
        window.discard(key)
        assert key not in window


@given(steps=_steps, before=st.floats(0, 2_000))
def test_forgetting_drops_only_what_is_older(steps: list[tuple[int, float]], before: float) -> None:
    window = Window(3, 30.0)
    now = 0.0
    newest: dict[int, float] = {}
    for key, passed in steps:
        now += passed
        window.add(key, now)
        newest[key] = now
    known = set(window)
    window.forget(before)
    assert all(newest[int(str(key))] < before for key in known - set(window))


def test_a_key_is_used_within_its_window_and_the_oldest_are_forgotten() -> None:
    keys = Keys(size=2, seconds=10)
    for n, key in enumerate("abc"):
        keys.add(key, at=float(n))
    assert not keys.is_used("a", at=3.0)
    assert keys.is_used("b", at=10.9)
    assert not keys.is_used("b", at=11.0)
    keys.add("b", at=20.0)
    keys.add("d", at=21.0)
    assert keys.is_used("b", at=22.0)
    assert not keys.is_used("c", at=3.0)
    keys.discard("b")
    assert not keys.is_used("b", at=22.0)


def test_a_generation_ends_with_its_size() -> None:
    window = Window(size=2, seconds=60)
    for number, key in enumerate("abcde"):
        window.add(key, now=float(number))
    assert (list(window.old), list(window.new)) == (["c", "d"], ["e"])
    assert list(window) == ["c", "d", "e"]


def test_a_generation_ends_with_its_time() -> None:
    window = Window(size=100, seconds=60)
    for key, now in (("a", 10.0), ("b", 69.9), ("c", 70.0), ("d", 129.0), ("e", 131.0)):
        window.add(key, now)
    assert (list(window.old), list(window.new)) == (["c", "d"], ["e"])


def test_only_a_generation_that_is_older_as_a_whole_is_forgotten() -> None:
    window = Window(size=2, seconds=60)
    assert window.forget(before=1e9) == 0
    for key, now in (("a", 0.0), ("b", 1.0), ("c", 5.0)):
        window.add(key, now)
    assert window.forget(before=5.0) == 0  # "b" may have been added at 5, for all that is known
    assert "a" in window
    assert window.forget(before=5.1) == 2
    assert list(window) == ["c"]
    assert window.forget(before=5.1) == 0
