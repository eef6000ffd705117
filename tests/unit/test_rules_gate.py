"""What leaves a gate, against a list of all that came."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from hivewire.rules.gate import FEW, Gate

STEPS = st.lists(st.sampled_from(["hold", "take", "take at once", "stored", "refused", "failed"]), max_size=80)


class Seen:
    """A gate, and what became of each number that it was given."""

    def __init__(self) -> None:
        self.gate = Gate[int]()
        self.came = 0
        self.out: list[int] = []
        self.left: list[int] = []
        self.dropped: list[int] = []

    def step(self, step: str) -> None:
        gate = self.gate
        match step:
            case "hold":
                gate.held.append(self.came)
                self.came += 1
            case "take" | "take at once":
                self._take(gate.take(at_once=step != "take"))
            case _ if self.out:
                self.out.pop(0)
                if step == "failed":
                    self.dropped += gate.failed()
                else:
                    may_leave = gate.stored() if step == "stored" else gate.refused()
                    assert may_leave == bool(gate.held and not self.out)

    def _take(self, taken: list[int]) -> None:
        if self.out:
            assert not taken or (self.gate.is_proven and len(self.out) < FEW)
        elif not self.gate.is_proven:
            assert len(taken) <= 1
        self.out += taken
        self.left += taken


@given(STEPS)
def test_nothing_is_lost_or_overtaken_and_one_alone_is_out_before_one_was_stored(steps: list[str]) -> None:
    seen = Seen()
    for step in steps:
        seen.step(step)
        assert seen.gate.out == len(seen.out)
        assert seen.left == sorted(seen.left)
        assert sorted(seen.left + seen.dropped + seen.gate.held) == list(range(seen.came))


@given(STEPS)
def test_who_takes_when_all_is_answered_gets_something(steps: list[str]) -> None:
    seen = Seen()
    for step in steps:
        seen.step(step)
    while seen.out:
        seen.step("stored")
    while seen.gate.held:
        before = len(seen.left)
        seen.step("take")
        assert len(seen.left) > before
        while seen.out:
            seen.step("stored")


def test_a_burst_waits_for_the_answer_and_leaves_as_a_whole() -> None:
    gate = Gate[int]()
    gate.held += range(3)
    assert gate.take() == [0]
    gate.held += range(3, 40)
    assert gate.take(at_once=True) == []
    assert gate.stored()
    assert gate.take() == list(range(1, 40))
    gate.held += range(40, 50)
    ages = [gate.grows_old]
    for _ in range(38):
        assert not gate.stored()
        ages.append(gate.grows_old)
    assert ages == [False] * 35 + [True] * 4
    assert gate.stored()
    assert gate.take() == list(range(40, 50))


def test_what_stands_behind_a_failure_does_not_overtake_it() -> None:
    gate = Gate[int]()
    gate.held += range(5)
    gate.take()
    gate.stored()
    gate.take()
    gate.held += range(5, 9)
    assert gate.failed() == [5, 6, 7, 8]
    for _ in range(3):
        gate.refused()
    gate.held += range(9, 12)
    assert gate.take() == [9]  # alone, as at first


def test_only_who_asks_for_it_gets_what_is_held_beside_a_few() -> None:
    gate = Gate[int]()
    gate.held.append(0)
    gate.take()
    gate.stored()
    gate.held.append(1)
    gate.take()
    gate.held.append(2)
    assert gate.take() == []
    assert gate.take(at_once=True) == [2]
