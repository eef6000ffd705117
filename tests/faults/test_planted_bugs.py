"""The seeded driver finds bugs: each of these is planted, and must be caught within a bounded number of seeds."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable, Hashable, Sequence, Set
from typing import Any

import pytest

from hivewire.backend import Append, Back, Dead, Saved, Unfinished
from hivewire.delivery import Delivery
from hivewire.engine import once
from hivewire.engine import sender as engine_sender
from hivewire.engine.admission import Admission
from hivewire.engine.claims import Claims, claim_of
from hivewire.engine.crew import Crew
from hivewire.engine.delivery import EngineDelivery
from hivewire.engine.inbox import Inbox
from hivewire.engine.outcomes import Outcomes, not_started
from hivewire.engine.protocol import Engine
from hivewire.engine.schedules import Schedules
from hivewire.engine.sender import Sender
from hivewire.engine.settling import Settling
from hivewire.engine.shards import Shard
from hivewire.engine.subscriptions import Subscriptions
from hivewire.errors import QueueFull
from hivewire.message import Message
from hivewire.record import Fetched
from hivewire.rules import lanes as rules_lanes
from hivewire.rules.lanes import Lane, Lanes
from hivewire.rules.watermark import Watermark
from hivewire.testing.profiles_driver import ProfileConsumer
from hivewire.testing.profiles_kafka import KafkaWorld, MovingConsumer
from hivewire.testing.profiles_sql import Row, SqlWorld
from hivewire.testing.profiles_world import World
from hivewire.testing.seeded import try_seed

_MOST_SEEDS = 200

Plant = Callable[[pytest.MonkeyPatch], None]
_plants: list[tuple[Plant, tuple[str, ...], str, int]] = []


def planted(*profiles: str, caught_by: str = "", first: int = 0) -> Callable[[Plant], Plant]:
    """A bug that these profiles must show; `caught_by` names a check that must be among those that see it. `first`: the
    seed to begin with, for a bug that shows seldom."""

    def add(plant: Plant) -> Plant:
        _plants.append((plant, profiles, caught_by, first))
        return plant

    return add


def around_handlers(patch: pytest.MonkeyPatch, before: Callable[[Inbox, EngineDelivery], Any]) -> None:
    """Do something before each handler that `serve` runs."""
    original = Crew.__init__

    def init(self: Crew, inbox: Inbox, handle: Any, *rest: Any, **named: Any) -> None:
        async def both(delivery: Delivery) -> None:
            assert isinstance(delivery, EngineDelivery)
            await before(inbox, delivery)
            await handle(delivery)

        original(self, inbox, both, *rest, **named)

    patch.setattr(Crew, "__init__", init)


@planted("sql", "redis", caught_by="nothing_lost")
def ack_before_handling(patch: pytest.MonkeyPatch) -> None:
    async def acknowledge(inbox: Inbox, delivery: EngineDelivery) -> None:
        await inbox.held.consumer.settle([delivery.fetched])

    around_handlers(patch, acknowledge)


@planted("sql", "redis", "kafka", caught_by="nothing_lost")
def dedup_marked_before_handling(patch: pytest.MonkeyPatch) -> None:
    async def remember(inbox: Inbox, delivery: EngineDelivery) -> None:
        inbox.held.remembered.add(delivery.fetched, inbox.held.now)

    around_handlers(patch, remember)


@planted("kafka", caught_by="nothing_lost")
def finished_when_taken(patch: pytest.MonkeyPatch) -> None:
    original = Shard.take

    def take(self: Shard, fetched: Fetched) -> bool:
        taken = original(self, fetched)
        if taken and self.mark is not None:
            self.mark.finish(int(fetched.at))
        return taken

    patch.setattr(Shard, "take", take)


@planted("kafka")
def watermark_is_one_too_high(patch: pytest.MonkeyPatch) -> None:
    original: property = vars(Watermark)["at"]
    patch.setattr(Watermark, "at", property(lambda self: original.__get__(self) + 1))


@planted("sql", "redis", "kafka")
def lost_when_the_answer_is_lost(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(ProfileConsumer, "_keep_taken", lambda self, taken: None)


@planted("sql", caught_by="order_per_key")
def order_broken_at_takeover(patch: pytest.MonkeyPatch) -> None:
    original = SqlWorld._inherit

    def inherit(self: SqlWorld, queue: str, process: str) -> None:
        for lane in self._table(queue).lanes.values():
            if lane.owner == process:
                lane.rows.reverse()
        original(self, queue, process)

    patch.setattr(SqlWorld, "_inherit", inherit)


@planted("sql")
def fence_not_checked_by_the_table(patch: pytest.MonkeyPatch) -> None:
    def taken(self: SqlWorld, queue: str, process: str, fetched: Fetched) -> Row | None:
        return self._table(queue).rows.get(int(fetched.at))

    patch.setattr(SqlWorld, "_has_lease", lambda *where: True)
    patch.setattr(SqlWorld, "_taken", taken)


@planted("sql", "redis", "kafka", caught_by="only_owners_start")
def own_lease_not_looked_at(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(ProfileConsumer, "holds", lambda self, fetched: True)


@planted("sql", "redis", "kafka", caught_by="dead_for_a_reason", first=60)
def retry_counted_twice(patch: pytest.MonkeyPatch) -> None:
    original = Outcomes.failed

    def failed(self: Outcomes, lane: Lane, *rest: Any) -> None:
        lane.waiting[0].failures += 1
        original(self, lane, *rest)

    patch.setattr(Outcomes, "failed", failed)


@planted("sql", "redis", "kafka", caught_by="nothing_lost")
def retry_lost(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Outcomes, "_again", lambda self, lane, delay_s: self.done(lane))


@planted("sql", "redis", "kafka", caught_by="nothing_lost")
def expired_dropped_silently(patch: pytest.MonkeyPatch) -> None:
    original = Outcomes.dead

    def dead(self: Outcomes, lane: Lane, reason: str, error: str) -> Any:
        return self.done(lane) if reason == "expired" else original(self, lane, reason, error)

    patch.setattr(Outcomes, "dead", dead)
    patch.setattr(World, "bury_expired", lambda self: 0)
    patch.setattr(SqlWorld, "bury_expired", lambda self: 0)


@planted("sql", "redis", "kafka", caught_by="nothing_lost")
def dead_letter_not_written(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(World, "bury", lambda self, queue, record, letter: None)


@planted("redis", "kafka", caught_by="all_settled")
def blocked_lane_never_woken(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Lanes, "unblock", lambda self, lane: False)


@planted("sql", caught_by="dead_for_a_reason")
def given_back_counts_as_an_attempt(patch: pytest.MonkeyPatch) -> None:
    original = SqlWorld._put_back

    def put_back(self: SqlWorld, queue: str, row: Row, unfinished: Unfinished) -> None:
        if isinstance(unfinished, Back) and not isinstance(unfinished, Dead):
            unfinished.fetched.failures += 1
        original(self, queue, row, unfinished)

    patch.setattr(SqlWorld, "_put_back", put_back)


@planted("sql", "redis", "kafka", caught_by="nothing_lost")
def tail_of_a_batch_dropped_when_it_is_sent_again(patch: pytest.MonkeyPatch) -> None:
    original = engine_sender._only

    def only(batch: Sequence[Append], places: set[int]) -> list[Append]:
        return original(batch, places - {max(places)} if len(places) > 1 else places)

    patch.setattr(engine_sender, "_only", only)


@planted("sql", "redis", caught_by="handled_once")
def settled_ids_not_remembered(patch: pytest.MonkeyPatch) -> None:
    original = Inbox.fetch

    async def fetch(self: Inbox, *rest: Any, **named: Any) -> Sequence[Fetched]:
        batch = await original(self, *rest, **named)
        for fetched in batch:
            fetched.seen = False
        return batch

    patch.setattr(Inbox, "fetch", fetch)


@planted("kafka")
def settled_ids_forgotten_at_takeover(patch: pytest.MonkeyPatch) -> None:
    def nothing(self: KafkaWorld, queue: str, number: int) -> Sequence[Hashable]:
        return ()

    patch.setattr(KafkaWorld, "settled_lately", nothing)


@planted("redis", "kafka", caught_by="one_at_a_time")
def shard_given_up_while_its_handlers_run(patch: pytest.MonkeyPatch) -> None:
    async def losing(self: Inbox, shards: Set[int], within_s: float) -> dict[int, Saved]:
        assert self.held.shards is not None
        states = self.held.shards.states(shards)
        self.held.shards.close(shards)
        return states

    patch.setattr(Inbox, "losing", losing)
    patch.setattr(Inbox, "hand_over", losing)


@planted("sql", "redis", "kafka", caught_by="broadcasts")
def leaving_a_group_has_no_effect(patch: pytest.MonkeyPatch) -> None:
    original = Subscriptions.set_member

    async def set_member(self: Subscriptions, *where: Any, joined: bool) -> None:
        await original(self, *where, joined=True)

    patch.setattr(Subscriptions, "set_member", set_member)


@planted("sql", "redis", caught_by="not_too_early")
def delay_ignored(patch: pytest.MonkeyPatch) -> None:
    original = World.append

    def append(self: World, batch: Sequence[Append]) -> Any:
        for part in batch:
            part.delay_s = 0.0
        return original(self, batch)

    patch.setattr(World, "append", append)


@planted("sql", "redis", caught_by="idempotent_once")
def idempotency_key_not_checked(patch: pytest.MonkeyPatch) -> None:
    original = World.append

    def append(self: World, batch: Sequence[Append]) -> Any:
        for part in batch:
            part.idempotency_key = None
        return original(self, batch)

    patch.setattr(World, "append", append)


@planted("kafka", caught_by="only_owners_commit")
def fence_not_checked_by_the_broker(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(KafkaWorld, "is_fenced_out", lambda *where: False)


@planted("kafka", caught_by="one_at_a_time")
def new_owner_does_not_wait_for_what_runs_on(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Inbox, "expect", lambda self, shard, away: None)


@planted("kafka", caught_by="one_at_a_time")
def shard_given_up_without_a_word_of_what_runs_on(patch: pytest.MonkeyPatch) -> None:
    async def hold(self: MovingConsumer, batch: Sequence[Fetched]) -> None:
        return None

    patch.setattr(MovingConsumer, "hold", hold)


@planted("kafka", caught_by="all_settled")
def end_of_what_ran_on_is_not_heard(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Inbox, "returned", lambda self, shard, token, at, back: None)


@planted("kafka", caught_by="all_settled")
def outcome_of_what_ran_on_is_kept_to_oneself(patch: pytest.MonkeyPatch) -> None:
    async def settle_held(
        self: MovingConsumer, done: Sequence[Fetched], rest: Sequence[Unfinished]
    ) -> Sequence[Fetched]:
        return ()

    patch.setattr(MovingConsumer, "settle_held", settle_held)


@planted("redis", first=100)
def lane_left_early_does_not_let_its_shard_go(patch: pytest.MonkeyPatch) -> None:
    def put_back(self: Outcomes, lane: Lane, *, first: bool = False) -> None:
        self.held.lanes.resume(lane)

    patch.setattr(Outcomes, "put_back", put_back)


@planted("sql", "redis", "kafka", caught_by="nothing_lost")
def refused_by_a_full_queue_and_called_sent(patch: pytest.MonkeyPatch) -> None:
    original = Sender._try

    async def without_refusals(self: Sender, batch: Sequence[Append], left: Any) -> dict[int, Any]:
        problems = await original(self, batch, left)
        return {place: problem for place, problem in problems.items() if not isinstance(problem, QueueFull)}

    patch.setattr(Sender, "_try", without_refusals)


@planted("sql", "redis", "kafka", caught_by="answers")
def reply_given_to_another_request(patch: pytest.MonkeyPatch) -> None:
    original = Engine.reply

    async def mixed_up(self: Engine, message: Message, content: Any, **how: Any) -> Any:
        return await original(self, message, f"not {content}", **how)

    patch.setattr(Engine, "reply", mixed_up)


@planted("sql", "redis", "kafka", caught_by="nothing_lost")
def acknowledgement_refused_that_took_effect(patch: pytest.MonkeyPatch) -> None:
    original = Settling.expect

    def expect(self: Settling, fetched: Fetched) -> asyncio.Future[bool]:
        async def refused(stored: asyncio.Future[bool]) -> bool:
            await stored
            return False

        return asyncio.ensure_future(refused(original(self, fetched)))

    patch.setattr(Settling, "expect", expect)


@planted("sql", "redis", "kafka", caught_by="shouts")
def volatile_broadcast_handed_out_twice(patch: pytest.MonkeyPatch) -> None:
    original = Inbox.push_volatile

    def twice(self: Inbox, id: str, body: bytes, type: str) -> None:
        original(self, id, body, type)
        original(self, id, body, type)

    patch.setattr(Inbox, "push_volatile", twice)


@planted("sql", "redis", "kafka", caught_by="one_at_a_time")
def copies_in_competing_mode_run_side_by_side(patch: pytest.MonkeyPatch) -> None:
    """A second copy of a message beside the first."""
    count = itertools.count()
    patch.setattr(rules_lanes, "lane_of", lambda record, competing: f"{record.id}/{next(count)}")


@planted("sql", "redis", "kafka", caught_by="schedules")
def times_of_a_schedule_left_out(patch: pytest.MonkeyPatch) -> None:
    original = Schedules._fire_one

    async def careless(self: Schedules, name: str, stored: Any, due: float, missed: int) -> None:
        if round(due) % 3:
            await original(self, name, stored, due, missed)

    patch.setattr(Schedules, "_fire_one", careless)


@planted("sql", "redis", "kafka", caught_by="effects")
def earlier_attempt_at_an_effect_not_looked_at(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(once, "follows", lambda noted, now: "begin")


@planted("sql", "redis", "kafka", caught_by="dead_for_a_reason")
def content_deleted_before_the_acknowledgement(patch: pytest.MonkeyPatch) -> None:
    original = Claims.opened

    async def eager(self: Claims, fetched: Fetched) -> Message:
        message = await original(self, fetched)
        self.settled([fetched], set())
        return message

    patch.setattr(Claims, "opened", eager)


@planted("sql", caught_by="dead_for_a_reason", first=100)
def content_of_a_dead_letter_deleted_with_its_duplicate(patch: pytest.MonkeyPatch) -> None:
    def note(self: Claims, fetched: Fetched) -> None:
        if (claim := claim_of(fetched.record)) is not None:
            self.open[id(fetched)] = (fetched, claim.name)

    patch.setattr(Claims, "note_duplicate", note)


@planted("kafka", caught_by="dead_for_a_reason", first=860)
def buried_by_who_was_frozen(patch: pytest.MonkeyPatch) -> None:
    def refuse(self: Admission, lane: Lane, reason: str, error: str) -> None:
        not_started(lane.waiting[0])
        self._outcomes.dead(lane, reason, error)

    patch.setattr(Admission, "_refuse", refuse)


@pytest.mark.parametrize(
    ("plant", "profile", "caught_by", "first"),
    [
        pytest.param(plant, profile, caught_by, first, id=f"{plant.__name__}-{profile}")
        for plant, profiles, caught_by, first in _plants
        for profile in profiles
    ],
)
@pytest.mark.timeout(300)
def test_a_planted_bug_is_caught(
    plant: Plant, profile: str, caught_by: str, first: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    plant(monkeypatch)
    seen: set[str] = set()
    for seed in range(first, first + _MOST_SEEDS):
        seen |= {line.partition(":")[0] for line in try_seed(profile, seed).broken}
        if seen and (not caught_by or caught_by in seen):
            monkeypatch.undo()
            assert try_seed(profile, seed).is_good  # it was this bug, not another one
            return
    pytest.fail(f"{plant.__name__} was not caught by {caught_by or 'any check'} in {_MOST_SEEDS} seeds, only {seen}")


def test_there_are_enough_planted_bugs() -> None:
    assert len(_plants) >= 12
