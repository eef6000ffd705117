"""The suite bites: each bug planted here is caught by a case that passes without it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Hashable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from hivewire.backend import Append, Duplicate
from hivewire.backends.memory.backend import MemoryBackend
from hivewire.backends.memory.consumer import MemoryConsumer
from hivewire.backends.memory.queue import Lane as StoredLane
from hivewire.backends.memory.queue import Queue
from hivewire.delivery import Delivery
from hivewire.engine.delivery import EngineDelivery
from hivewire.engine.outcomes import Outcomes
from hivewire.engine.protocol import Engine
from hivewire.errors import LeaseLost
from hivewire.record import Fetched
from hivewire.rules.dedup import Window
from hivewire.rules.lanes import Lane
from hivewire.rules.retry import Retry
from hivewire.testing.conformance import (
    at_least_once,
    bad_input,
    bounds,
    broadcast,
    dead_letters,
    fencing,
    filters,
    idempotent_send,
    order,
    retry,
    takeover,
    waiting,
)
from hivewire.testing.conformance.fabric import Fabric
from tests.conformance.backends import memory

Patch = pytest.MonkeyPatch


class Planted(NamedTuple):
    name: str
    plant: Callable[[Patch], None]
    case: Callable[[Fabric], Awaitable[None]]


def ack_before_handling(patch: Patch) -> None:
    serve = Engine.serve

    async def careless(self: Engine, agent: str, handle: Any, **options: Any) -> None:
        async def acked_first(delivery: Delivery) -> None:
            await delivery.ack()
            await handle(delivery)

        await serve(self, agent, acked_first, **options)

    patch.setattr(Engine, "serve", careless)


def lost_on_cancel(patch: Patch) -> None:
    def forget(self: Outcomes, lane: Lane) -> None:
        while lane.waiting:
            self.done(lane)

    patch.setattr(Outcomes, "give_back", forget)


def order_broken_by_a_nack(patch: Patch) -> None:
    put_back = Queue.put_back

    def to_the_end(self: Queue, lane: StoredLane, fetched: Fetched, due_at: float | None) -> None:
        if due_at is not None:
            lane.records.rotate(-1)
        put_back(self, lane, fetched, due_at)

    patch.setattr(Queue, "put_back", to_the_end)


class _Forgetful(dict[Hashable, None]):
    def __setitem__(self, key: Hashable, value: None) -> None:
        """Keep nothing."""


def dedup_off(patch: Patch) -> None:
    init = Window.__init__

    def without_memory(self: Window, size: int, seconds: float) -> None:
        init(self, size, seconds)
        self.new = _Forgetful()

    patch.setattr(Window, "__init__", without_memory)


def late_acks_pass(patch: Patch) -> None:
    ack = EngineDelivery.ack

    async def polite(self: EngineDelivery) -> None:
        with suppress(LeaseLost):
            await ack(self)

    patch.setattr(EngineDelivery, "ack", polite)


def a_member_is_forgotten(patch: Patch) -> None:
    append = MemoryBackend.append

    async def but_b(self: MemoryBackend, batch: Sequence[Append]) -> Mapping[int, Duplicate | Exception]:
        return await append(self, [entry for entry in batch if not entry.records[0].id.endswith("@b")])

    patch.setattr(MemoryBackend, "append", but_b)


def _acknowledged_instead(reason: str) -> Callable[[Patch], None]:
    def plant(patch: Patch) -> None:
        dead = Outcomes.dead

        def silent(self: Outcomes, lane: Lane, why: str, error: str) -> bool:
            return self.done(lane) if why == reason else dead(self, lane, why, error)

        patch.setattr(Outcomes, "dead", silent)

    return plant


def full_queue_drops(patch: Patch) -> None:
    append = MemoryBackend.append

    async def lossy(self: MemoryBackend, batch: Sequence[Append]) -> Mapping[int, Duplicate | Exception]:
        problems = await append(self, batch)
        return {place: problem for place, problem in problems.items() if isinstance(problem, Duplicate)}

    patch.setattr(MemoryBackend, "append", lossy)


def nobody_takes_over(patch: Patch) -> None:
    patch.setattr(MemoryConsumer, "_died", lambda self: None)


def no_jitter(patch: Patch) -> None:
    patch.setattr(Retry, "delay_s", lambda self, failures, chance: 0.0)


def two_of_a_key_at_once(patch: Patch) -> None:
    append = Queue.append

    def each_its_own(self: Queue, records: Sequence[Any], now: float) -> None:
        for record in records:
            record.key = record.id
        append(self, records, now)

    patch.setattr(Queue, "append", each_its_own)


def attempts_are_forgotten(patch: Patch) -> None:
    take = Queue.take

    def fresh(self: Queue, *arguments: Any) -> list[Fetched]:
        taken = take(self, *arguments)
        for fetched in taken:
            fetched.starts = 1 if fetched.marked else 0
        return taken

    patch.setattr(Queue, "take", fresh)


def replay_keeps_the_letter(patch: Patch) -> None:
    revive = MemoryBackend.revive

    async def twice(self: MemoryBackend, queue: str | None, ids: Sequence[str] | None) -> int:
        before = dict(self.store.dead)
        revived = await revive(self, queue, ids)
        self.store.dead.update(before)
        return revived

    patch.setattr(MemoryBackend, "revive", twice)


async def late_ack(fabric: Fabric) -> None:
    await fencing.test_a_late_settlement_is_refused_and_changes_nothing(fabric, "ack")


PLANTED = [
    Planted("ack before handling", ack_before_handling, at_least_once.test_a_raising_handler_gets_it_again),
    Planted("lost on cancel", lost_on_cancel, at_least_once.test_receive_cancelled_anywhere_loses_nothing),
    Planted("order broken by a nack", order_broken_by_a_nack, order.test_order_over_a_nack_with_a_long_delay),
    Planted(
        "two of a key at once", two_of_a_key_at_once, order.test_no_next_message_of_a_key_until_the_last_is_settled
    ),
    Planted("dedup off", dedup_off, idempotent_send.test_a_resend_of_the_same_id_is_handled_once),
    Planted("late acks pass", late_acks_pass, late_ack),
    Planted("a member is forgotten", a_member_is_forgotten, broadcast.test_broadcasts_of_one_sender_arrive_in_order),
    Planted(
        "expired is dropped", _acknowledged_instead("expired"), bounds.test_expired_unread_goes_to_the_dead_letters
    ),
    Planted(
        "malformed is skipped",
        _acknowledged_instead("malformed"),
        bad_input.test_malformed_bytes_are_a_dead_letter_and_the_next_message_flows,
    ),
    Planted(
        "filtered is acknowledged",
        _acknowledged_instead("unsubscribed"),
        filters.test_a_type_outside_the_subscriptions_is_a_dead_letter,
    ),
    Planted("a full queue drops", full_queue_drops, bounds.test_a_full_queue_refuses_and_keeps_all_it_took),
    Planted("nobody takes over", nobody_takes_over, takeover.test_a_restarted_worker_gets_unfinished_work_oldest_first),
    Planted("no jitter", no_jitter, retry.test_delays_stay_under_their_ceiling_and_rise),
    Planted("attempts are forgotten", attempts_are_forgotten, at_least_once.test_async_with_nacks_and_goes_on_raising),
    Planted("replay keeps the letter", replay_keeps_the_letter, dead_letters.test_a_replayed_message_can_die_again),
]


@pytest.mark.parametrize("planted", PLANTED, ids=[planted.name for planted in PLANTED])
async def test_a_planted_bug_is_caught(planted: Planted, monkeypatch: Patch, tmp_path: Path) -> None:
    monkeypatch.setattr(waiting, "patience", 0.3)
    for name in ("sound", "planted"):
        (tmp_path / name).mkdir()
    async with memory(tmp_path / "sound") as fabric:
        await planted.case(fabric)
    planted.plant(monkeypatch)
    with pytest.raises((AssertionError, ValueError, pytest.fail.Exception)):
        async with memory(tmp_path / "planted") as fabric:
            await planted.case(fabric)
