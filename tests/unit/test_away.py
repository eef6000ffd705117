"""What begins at the next owner of a shard while handlers of the last one run on."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from unittest.mock import MagicMock, call, create_autospec

import pytest

from hivewire.backend import Again, Back, Consumer
from hivewire.engine.away import Away
from hivewire.engine.held import Held
from hivewire.engine.outcomes import Outcomes
from hivewire.engine.settling import Settling
from hivewire.errors import ConnectionLost
from hivewire.record import Fetched, Record
from hivewire.rules.lanes import Lane, Lanes
from hivewire.rules.moved import Returned
from hivewire.rules.retry import Retry

SHARD = 3
FAILED = Returned(1, 1, 0, 0, False, 0.0)
DIED = Returned(1, 0, 0, 1, True, 0.0)


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
        outcomes.settling = self.settling = create_autospec(Settling, instance=True)
        self.settling.noted.return_value = set()
        held.core.backend.now.return_value = 0.0
        self.outcomes = outcomes
        self.away = Away(outcomes)
        self.away.expect(SHARD, running)

    def run(self, fetched: Fetched) -> tuple[Lane, Fetched]:
        """A handler of it has begun here."""
        self.lanes.add([fetched])
        lane = self.lanes.next_lane()
        assert lane is not None
        return lane, fetched

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
    lane, runs = owner.run(record(5, "a"))
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


def test_nothing_overtakes_a_delayed_one_that_waits() -> None:
    """It fell due before they were sent, perhaps."""
    owner = Owner(9)
    owner.take(record(4, "d"), record(5, "b", due_at=1.0), record(6, "b"))
    assert owner.begins() == [4]
    owner.take(record(7, "b"), record(8, "c", due_at=1.0), record(9, "a"), record(10, "b"), record(11, "c"))
    begun = owner.begins()
    assert [at for at in begun if at not in (8, 11)] == [5, 6, 7, 10]
    assert [at for at in begun if at in (8, 11)] == [8, 11]


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


FATES = [None, FAILED, DIED]


@pytest.mark.parametrize("first_to_come_back", [4, 5])
@pytest.mark.parametrize("fates", [(one, two) for one in FATES for two in FATES])
@pytest.mark.parametrize("when", ["before they come", "between", "after they came"])
async def test_nothing_of_a_key_begins_before_all_of_it_are_back(
    first_to_come_back: int, fates: tuple[Returned | None, Returned | None], when: str
) -> None:
    """The first had ended where it was handled, which was not stored when the shard went; the second ran."""
    owner = Owner(4, 5)
    back = dict(zip((4, 5), fates, strict=True))
    order = [first_to_come_back, 9 - first_to_come_back]

    def come_back(at: int) -> None:
        owner.away.returned((SHARD, at), back[at])

    if when == "before they come":
        come_back(order[0])
    owner.take(record(4, "a"))
    if when == "between":
        come_back(order[0])
    assert owner.begins() == []
    owner.take(record(5, "a"), record(6, "a"))
    if when == "after they came":
        come_back(order[0])
    assert owner.begins() == [], f"{order[1]} may still run"
    come_back(order[1])
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    left = [at for at, fate in back.items() if fate is not None]
    expected = [*left, 6] if not left or left[0] == 5 else [4, 5, 6]  # who ended behind it is passed over in its turn
    assert owner.begins() == expected
    assert not owner.away.awaited
    assert len(owner.settling.add.mock_calls) == bool(left)


async def test_what_is_on_its_way_when_its_shard_goes_is_told_to_its_next_owner() -> None:
    """It has been noted, and nobody knows whether it is stored: who waits for it is told what the next owner was."""
    owner = Owner()
    owner.lanes.add([record(5, "a"), record(6, "b"), record(7, "c")])
    ends = {at: record(at, key) for at, key in ((5, "a"), (6, "b"), (7, "c"))}
    owner.settling.unsettled.return_value = [ends[5], ends[6]]
    await owner.away.keep([], [ends[5], ends[6], ends[7]])
    owner.consumer.hold.assert_awaited_once_with([ends[5], ends[6], ends[7]])
    owner.consumer.settle_held.assert_awaited_once_with((), [Back(ends[7])])  # that was stored meanwhile
    owner.consumer.settle_held.return_value = [ends[6]]
    owner.outcomes.store_here.return_value = [ends[5], ends[6]]
    assert await owner.away.overtaken([ends[5], ends[6]], (), [ends[5], ends[6]]) == [ends[6]]
    assert not owner.away.running


async def test_that_an_earlier_attempt_failed_does_not_hide_the_end_that_is_noted_behind_it() -> None:
    """The shard went while the failure was on its way, and the next attempt came to its end before that way did."""
    owner = Owner()
    lane, runs = owner.run(record(5, "a"))
    failed = Again(runs, 0.1)

    async def store_here(*_: object) -> Sequence[Fetched]:
        await owner.away.keep([lane])
        owner.lanes.finished(lane)
        owner.settling.noted.return_value = {id(runs)}
        return ()

    owner.outcomes.store_here.side_effect = store_here
    assert await owner.away.store((), [failed]) == []
    owner.consumer.settle_held.assert_not_awaited()
    owner.settling.noted.return_value = set()
    assert await owner.away.store([runs], ()) == []
    owner.consumer.settle_held.assert_awaited_once_with([runs], [])


async def test_what_was_told_to_the_next_owner_is_not_refused_when_the_rest_is_tried_again() -> None:
    owner = Owner()
    lane, runs = owner.run(record(5, "a"))
    other = record(6, "b")
    await owner.away.keep([lane])
    owner.lanes.finished(lane)
    problems = [ConnectionLost("away")]

    async def store_here(done: Sequence[Fetched], rest: object) -> Sequence[Fetched]:
        if problems:
            raise problems.pop()
        return [fetched for fetched in done if fetched is runs]

    owner.outcomes.store_here.side_effect = store_here
    with pytest.raises(ConnectionLost):
        await owner.away.store([runs, other], ())
    assert await owner.away.store([runs, other], ()) == []
    owner.consumer.settle_held.assert_awaited_once_with([runs], [])


async def test_what_was_given_to_others_while_the_rest_was_stored_is_refused() -> None:
    owner = Owner()
    lane, runs = owner.run(record(5, "a"))
    await owner.away.keep([lane])
    owner.lanes.finished(lane)

    async def store_here(*_: object) -> Sequence[Fetched]:
        owner.away.lost_held()
        return ()

    owner.outcomes.store_here.side_effect = store_here
    assert await owner.away.store([runs, record(6, "b")], ()) == [runs]
    owner.consumer.settle_held.assert_not_awaited()


async def test_what_ended_while_it_was_said_to_run_here_is_given_back_even_if_that_fails_at_first() -> None:
    """Else its next owner would wait for it for as long as this process lives."""
    owner = Owner()
    lane, ended = owner.run(record(5, "a"))

    async def hold(_: object) -> None:
        owner.lanes.block(lane)  # it failed, which is part of the shard's state

    owner.consumer.hold.side_effect = hold
    owner.consumer.settle_held.side_effect = [ConnectionLost("away"), ()]
    with pytest.raises(ConnectionLost):
        await owner.away.keep([lane])
    owner.settling.add.assert_called_once_with(Back(ended))
    assert await owner.away.store((), [Back(ended)]) == []
    assert owner.consumer.settle_held.await_args_list == [call((), [Back(ended)]), call([], [Back(ended)])]


async def test_one_that_fails_after_its_shard_went_keeps_its_delay() -> None:
    """Of a caller of `receive`, who has no more to do with it."""
    held: MagicMock = create_autospec(Held, instance=True)
    held.lanes, held.watchers, held.notes, held.store_lanes = Lanes(), (), None, False
    held.core.backend.features.settle_pace_s = 0.0
    outcomes = Outcomes(held)
    outcomes.retry_of = lambda _: Retry(max_attempts=5)
    held.lanes.add([record(5, "a")])
    lane = held.lanes.next_lane()
    assert lane is not None
    runs = lane.waiting[0]
    held.lanes.detach(lane)
    outcomes.failed(lane, None, 60.0)
    outcomes.let_go(lane)
    assert outcomes.settling.rest == [Again(runs, 60.0)]


def test_what_is_left_of_an_earlier_ownership_does_not_lose_a_shard_that_has_come_back() -> None:
    core = MagicMock()
    core.features.store_lanes = core.features.per_record_ack = False
    core.features.leases_lanes.return_value = False
    held = Held(core, "q", competing=False)
    held.joined = MagicMock()
    held.joined.holds = lambda fetched: fetched.token == 2
    assert held.shards is not None
    held.shards.gained(SHARD, 1, b"")
    held.lanes.add([record(5, "a")])
    lane = held.lanes.next_lane()
    assert lane is not None
    held.lanes.detach(lane)
    held.lost({SHARD})
    held.shards.gained(SHARD, 2, b"")
    assert not held.holds(lane)
    held.refused(lane)
    assert held.shards.has(SHARD, 2)
    assert not lane.lost, "it is given back by its taker"
