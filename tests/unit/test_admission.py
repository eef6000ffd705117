"""What has had all its attempts is not begun once more, whoever owns its shard by now."""

from __future__ import annotations

from unittest.mock import AsyncMock, MagicMock, create_autospec

import pytest

from hivewire import Message
from hivewire.backend import Features
from hivewire.codec import encode
from hivewire.engine.admission import Admission, AllTypes
from hivewire.engine.held import Held
from hivewire.engine.outcomes import Outcomes
from hivewire.engine.remembered import Remembered
from hivewire.record import Fetched, Record
from hivewire.rules.lanes import Lane
from hivewire.rules.retry import Retry
from hivewire.settings import Settings

MOST = 3


class Door:
    """The admission of one inbox, and which outcomes it notes."""

    def __init__(self, *, is_internal: bool = False) -> None:
        held: MagicMock = create_autospec(Held, instance=True)
        held.is_internal = is_internal
        held.remembered = Remembered(Settings(), here=True)
        held.holds.return_value = True
        self.outcomes = create_autospec(Outcomes, instance=True)
        self.outcomes.held = held
        self.outcomes.policy.return_value = Retry(max_attempts=MOST)
        self.admission = Admission(self.outcomes, AllTypes())

    async def let_in(self, fetched: Fetched) -> tuple[bool, bool, str | None]:
        """Whether it begins by the short way, by the long one, and why it is dead."""
        lane = Lane("k", 0)
        lane.waiting.append(fetched)
        soon = self.admission.plain(fetched) is not None
        late = await self.admission.admit(lane) is not None
        calls = self.outcomes.dead.call_args_list
        return soon, late, calls[0].args[1] if calls else None


def fetched(failures: int, *, died: int = 0) -> Fetched:
    body = encode(Message(type="task", sender="me", to="you"), 1_000)
    return Fetched(
        0, 7, 1, Record("m", "k", body, "task"), 0.0, failures, failures, died=died, suspect=died > 0, marked=False
    )


@pytest.mark.parametrize("is_internal", [False, True])
async def test_who_takes_over_what_has_failed_for_the_last_time_only_buries_it(is_internal: bool) -> None:
    """Its shard moved while its dead letter was on its way: the state that it left knows of the failures only."""
    door = Door(is_internal=is_internal)
    assert await door.let_in(fetched(MOST)) == (False, False, "max_attempts")
    assert str(MOST) in door.outcomes.dead.call_args.args[2]


@pytest.mark.parametrize("failures", range(MOST))
async def test_what_has_attempts_left_begins(failures: int) -> None:
    assert (await Door().let_in(fetched(failures)))[1:] == (True, None)


async def test_a_death_alone_is_its_own_failure() -> None:
    assert await Door().let_in(fetched(MOST - 1, died=1)) == (False, False, "crashed")
    assert await Door().let_in(fetched(MOST - 1, died=2)) == (False, True, None)


@pytest.mark.parametrize("is_there", [False, True])
async def test_of_what_is_lost_while_the_store_is_asked_nothing_is_noted(is_there: bool) -> None:
    door, one, lane = Door(), fetched(0), Lane("k", 0)
    lane.waiting.append(one)
    held = door.outcomes.held
    held.remembered.add(one, 0.0)
    held.remembered.ended(one, 0.0)

    async def refetch(shard: int, at: list[int]) -> list[Fetched]:
        lane.lost = True
        return [one] if is_there else []

    held.consumer = AsyncMock(refetch=refetch)
    assert await door.admission.admit(lane) is None
    assert not door.outcomes.done.called
    assert held.remembered.has_ended(one)


@pytest.mark.parametrize("per_record_ack", [False, True])
def test_ends_are_remembered_where_one_can_see_that_the_store_has_undone_them(per_record_ack: bool) -> None:
    """Not where a settled record stays in its place anyway."""
    features = Features(durability="process", store_lanes=False, per_record_ack=per_record_ack)
    core = MagicMock(features=features, settings=Settings())
    held = Held(core, "~work", competing=False)
    done, dead = fetched(0), fetched(MOST)
    dead.at = 8
    Outcomes.stored(MagicMock(held=held, _remembered=held.remembered), [done], [], frozenset())
    held.remembered.died(dead, 0.0, refused=False)
    assert [held.remembered.has_ended(each) for each in (done, dead)] == [per_record_ack] * 2
