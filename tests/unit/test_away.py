"""What begins at the next owner of a shard while handlers of the last one run on."""

from __future__ import annotations

from collections.abc import Sequence
from unittest.mock import MagicMock, create_autospec

import pytest

from hivewire.backend import Again, Consumer
from hivewire.engine.away import Away
from hivewire.engine.held import Held
from hivewire.engine.outcomes import Outcomes
from hivewire.record import Fetched, Record
from hivewire.rules.lanes import Lanes

SHARD = 3


class Owner:
    """The next owner, which is told that these still run elsewhere."""

    def __init__(self, *running: int, competing: bool = False) -> None:
        held: MagicMock = create_autospec(Held, instance=True)
        held.watchers = ()
        self.lanes = held.lanes = Lanes(competing=competing)
        self.consumer = held.consumer = create_autospec(Consumer, instance=True)
        self.consumer.settle_held.return_value = ()
        outcomes: MagicMock = create_autospec(Outcomes, instance=True)
        outcomes.held = held
        outcomes.again_now.side_effect = self.lanes.unblock
        outcomes.done.side_effect = self.lanes.finished
        self.away = Away(outcomes)
        self.away.expect(SHARD, running)

    def take(self, *batch: Fetched) -> None:
        self.lanes.add(self.away.shut(batch))

    def begins(self) -> Sequence[int | str]:
        """What it would start now, in the order of each key."""
        begun: list[int | str] = []
        while (lane := self.lanes.next_lane()) is not None:
            begun += [fetched.at for fetched in lane.waiting]
        return begun


def record(at: int, key: str, *, due_at: float = 0.0) -> Fetched:
    return Fetched(SHARD, at, 1, Record(str(at), key, b"", due_at=due_at), 0.0)


async def test_that_an_earlier_attempt_failed_does_not_pass_for_the_end_of_the_one_that_runs() -> None:
    """It could not be stored for so long that the next attempt began, and then the shard went."""
    owner = Owner()
    owner.lanes.add([record(5, "a")])
    lane = owner.lanes.next_lane()
    assert lane is not None
    runs = lane.waiting[0]
    await owner.away.keep([lane])
    assert await owner.away.store((), [Again(runs, 0.1)]) == []
    owner.consumer.settle_held.assert_not_awaited()
    owner.lanes.block(lane)
    its_end = Again(runs, 0.2)
    await owner.away.store((), [its_end])
    owner.consumer.settle_held.assert_awaited_once_with([], [its_end])


async def test_a_copy_in_competing_mode_waits_for_the_one_that_runs_elsewhere() -> None:
    """Each message is a lane of its own there, whatever its key."""
    owner = Owner(9, competing=True)
    first, copy = record(9, "a"), record(10, "a")
    copy.record.id = first.record.id
    owner.take(first, copy, record(11, "a"))
    assert owner.begins() == [11]


def test_a_delayed_one_waits_for_a_later_one_of_its_key_that_runs_elsewhere() -> None:
    """It was not due when that one began; it is now, and is read first."""
    owner = Owner(9)
    owner.take(record(5, "a", due_at=1.0), record(6, "b", due_at=1.0), record(7, "c"))
    assert owner.begins() == [7], "whose keys 5 and 6 have is not known before 9 has come"
    owner.take(record(9, "a"), record(10, "a"))
    assert owner.begins() == [6]
    owner.away.returned((SHARD, 9), None)
    assert sorted(map(int, owner.begins())) == [5, 10]


@pytest.mark.parametrize("at", [2, 9])
def test_a_delayed_one_waits_for_nothing_that_stands_before_it_or_has_ended(at: int) -> None:
    owner = Owner(at)
    owner.away.returned((SHARD, at), None)
    owner.take(record(at, "a"), record(at + 1, "b", due_at=1.0))
    assert owner.begins() == [at + 1]


def test_those_of_other_shards_do_not_wait() -> None:
    owner = Owner()
    owner.away.expect(SHARD + 1, [9])
    owner.take(record(5, "a", due_at=1.0))
    assert owner.begins() == [5]


def test_what_waits_is_forgotten_with_its_shard() -> None:
    owner = Owner(9)
    owner.take(record(5, "a", due_at=1.0))
    owner.away.lost({SHARD}, ())
    owner.away.expect(SHARD, [4])
    owner.take(record(4, "b"))
    assert owner.begins() == []
