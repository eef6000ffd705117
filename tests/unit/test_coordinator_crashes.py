"""Coordinators that die at any write, and what vanished or died meanwhile, on virtual time."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

import pytest

import hivewire as hw
from hivewire.coordination.coordinator import Coordinator
from hivewire.coordination.ledger import TaskFilter, TaskStatus
from hivewire.coordination.ledger.sqlite import MemoryStore
from hivewire.coordination.ledger.store import Script
from hivewire.coordination.ledger.stored import StoredLedger
from hivewire.coordination.planner import Planner
from hivewire.coordination.tasks import TaskRequest
from hivewire.errors import (
    Closed,
    ConnectionLost,
    CoordinationError,
)
from hivewire.testing.conformance.waiting import until_true
from hivewire.testing.scripted_model import Answer, ScriptedModel
from hivewire.testing.virtual_time import virtual
from tests.unit.coordinator_stage import (
    failing,
    now,
    plan,
    stage,
    sub,
)


class Crash(BaseException):
    """The process is dead."""


class DyingStore(MemoryStore):
    """The same tables, seen by a coordinator that dies at its `at`-th write, before or after the commit."""

    def __init__(self, shared: MemoryStore, at: int, *, stored: bool) -> None:
        super().__init__()
        self._shared = shared
        self._left = at
        self._stored = stored
        self.has_died = False

    async def open(self) -> None:
        await self._shared.open()

    async def close(self) -> None:
        pass

    async def read(self, make: Callable[[], Script[Any]]) -> Any:
        if self.has_died:
            raise Crash
        return await self._shared.read(make)

    async def write(self, make: Callable[[], Script[Any]], *, single: bool = False) -> Any:
        if self.has_died:
            raise Crash
        self._left -= 1
        if self._left == 0:
            self.has_died = True
            if self._stored:
                await self._shared.write(make, single=single)
            raise Crash
        return await self._shared.write(make, single=single)


PARTS = plan(sub("a"), sub("b", "a"), sub("c", "a"), sub("bad", "b"), sub("d", "b", "c", timeout_s=50))


async def dies_at(number: int, *, stored: bool) -> bool:
    """A coordinator that dies at that write and another one that goes on. Whether the first one came so far."""
    async with stage() as on:
        on.worker("w", "work", handler=failing("bad"))
        dying = DyingStore(on.store, number, stored=stored)
        answers: Sequence[Answer] = [PARTS, plan(sub("e", "d"))]
        first = Coordinator(
            ScriptedModel(list(answers)), on.protocol, ledger=StoredLedger(dying), team=on.workers, clock=now
        )
        second = await on.coordinator(planner=Planner(ScriptedModel(lambda asked: answers["went wrong" in asked.user])))
        request = TaskRequest(name="t", id="run-1")
        try:
            await first.open()
            await first.start(request)
            await asyncio.sleep(30)
        except (Crash, CoordinationError, Closed):
            pass
        came_so_far = dying.has_died
        await first.close()
        result = await second.execute(request)
        assert (result.status, sorted(result.output)) == ("completed", ["a", "b", "c", "d", "e"])
        assert sorted(on.calls) == ["a", "b", "bad", "c", "d", "e"], "a subtask was done twice"
        parts = await on.ledger.list_tasks(TaskFilter(parent_id="run-1"))
        for part in parts:
            told = [str(entry.status) for entry in await on.ledger.history(part.id)]
            assert told.count("completed") == (part.status is TaskStatus.COMPLETED)
        return came_so_far


@pytest.mark.parametrize("stored", [False, True], ids=["before the commit", "after the commit"])
def test_a_coordinator_may_die_at_every_write(stored: bool) -> None:
    """Another one finishes the run, and no subtask is done twice."""

    @virtual
    async def try_it(number: int) -> bool:
        return await dies_at(number, stored=stored)

    numbers = 0
    while try_it(numbers + 1):
        numbers += 1
        assert numbers < 200
    assert numbers > 10


class StumblingStore(DyingStore):
    """Raises at its `at`-th write something that nobody expects, and works again."""

    async def write(self, make: Callable[[], Script[Any]], *, single: bool = False) -> Any:
        self._left -= 1
        if self._left == 0:
            raise ZeroDivisionError("nobody expects this")
        return await self._shared.write(make, single=single)


@pytest.mark.parametrize("at", range(2, 9))
def test_an_error_that_nobody_expects_holds_nothing_up(at: int, caplog: pytest.LogCaptureFixture) -> None:
    """A loop that ended would keep the messages that its process holds."""

    @virtual
    async def try_it() -> None:
        async with stage() as on:
            on.worker("w", "work")
            stumbling = StoredLedger(StumblingStore(on.store, at, stored=False))
            coordinator = await on.coordinator(ledger=stumbling)
            result = await coordinator.execute(TaskRequest(name="t"), plan=plan(sub("a"), sub("b", "a"), sub("c", "b")))
            assert (result.status, on.calls) == ("completed", ["a", "b", "c"])
            await asyncio.sleep(5)
            assert (await coordinator.health()).status == "healthy"

    try_it()
    assert any(
        "nobody expects this" in str(record.exc_info) + record.getMessage() + str(record.__dict__)
        for record in caplog.records
    )


@virtual
async def test_answers_among_the_dead_letters_are_taken_all_the_same() -> None:
    """They were with several coordinators that died."""
    async with stage() as on:
        on.worker("w", "work")
        first = await on.coordinator()
        run = await first.start(TaskRequest(name="t"), plan=plan(sub("a")))
        await first.close()
        while not (letters := await on.protocol.dead_letters("coordinator")):
            for delivery in await on.protocol.receive("coordinator", wait_s=1):
                await delivery.nack(delay_s=0)
        assert [letter.reason for letter in letters] == ["max_attempts"]
        second = await on.coordinator()
        assert (await second.result(run, timeout_s=20)).status == "completed"
        assert on.calls == ["a"]


@virtual
async def test_answers_behind_many_other_dead_letters_are_taken_too() -> None:
    async with stage() as on:
        on.worker("w", "work")
        await on.protocol.subscribe("coordinator", mode="competing")
        for _ in range(120):
            await on.protocol.send(hw.Message(type="result", sender="w", to="coordinator/nobody", in_reply_to="x"))
        rejected = 0
        while rejected < 120:
            for delivery in await on.protocol.receive("coordinator", wait_s=1):
                await delivery.reject("no such run")
                rejected += 1
        first = await on.coordinator()
        run = await first.start(TaskRequest(name="t"), plan=plan(sub("a")))
        await first.close()
        while len(await on.protocol.dead_letters("coordinator", limit=200)) == rejected:
            for delivery in await on.protocol.receive("coordinator", wait_s=1):
                await delivery.nack(delay_s=0)
        second = await on.coordinator()
        assert (await second.result(run, timeout_s=20)).status == "completed"
        assert on.calls == ["a"]


class AwayStore(MemoryStore):
    """Cannot be written to while it is `away`."""

    away = False

    async def write(self, make: Callable[[], Script[Any]], *, single: bool = False) -> Any:
        if self.away:
            raise ConnectionLost("the store is away")
        return await super().write(make, single=single)


@virtual
async def test_a_dead_letter_that_was_found_while_the_ledger_was_away_still_fails_its_subtask() -> None:
    async with stage() as on:
        store = AwayStore(clock=now)

        async def fails(task: hw.Message, ctx: hw.Context) -> Any:
            store.away = True
            raise hw.Reject("it cannot be done")

        on.worker("w", "work", handler=fails)
        coordinator = await on.coordinator(ledger=StoredLedger(store, migrate=True))
        run = await coordinator.start(TaskRequest(name="t"), plan=plan(sub("a")))
        await until_true(lambda: is_dead(on.protocol, "w"), "it is a dead letter", 20)
        await asyncio.sleep(3)
        store.away = False
        result = await coordinator.result(run, timeout_s=20)
        assert "it cannot be done" in result.error
        assert on.calls == ["a"], "it was done again"


async def is_dead(protocol: hw.Protocol, agent: str) -> bool:
    return bool(await protocol.dead_letters(agent))


async def taken_away(protocol: hw.Protocol, agent: str) -> int:
    """Somebody takes what waits for the agent, and does nothing with it."""
    taken = await protocol.receive(agent, wait_s=1)
    for delivery in taken:
        await delivery.ack()
    return len(taken)


@virtual
async def test_what_vanished_is_sent_anew_and_an_old_answer_does_not_count() -> None:
    async with stage() as on:
        await on.protocol.subscribe("w", mode="competing")
        coordinator = await on.coordinator(team=[("w", ["work"])])
        run = await coordinator.start(TaskRequest(name="t"), plan=plan(sub("a"), sub("b", "a")))
        first = (await coordinator.state(run)).rows["a"]
        while not await taken_away(on.protocol, "w"):
            pass
        on.worker("w", "work")
        result = await coordinator.result(run, timeout_s=20)
        assert (result.status, on.calls) == ("completed", ["a", "b"])
        row = (await coordinator.state(run)).rows["a"]
        assert (row.attempt, row.resends) == (2, 1)
        assert row.message_id != first.message_id


@virtual
async def test_what_vanishes_again_and_again_fails_and_what_lasts_does_not() -> None:
    async with stage() as on:
        coordinator = await on.coordinator(team=[("gone", ["lose"]), ("w", ["work"])])
        parts = plan(sub("a", assigned_to="lose"), sub("b", "a"), sub("c"))
        run = await coordinator.start(TaskRequest(name="t"), plan=parts)

        async def last(task: hw.Message, ctx: hw.Context) -> Any:
            await asyncio.sleep(30)

        on.worker("w", "work", handler=last)
        while not (await coordinator.state(run)).is_finished:
            await taken_away(on.protocol, "gone")
        result = await coordinator.result(run)
        assert result.subtasks == {"a": "failed", "b": "skipped", "c": "done"}
        assert "its message has vanished" in result.error
        assert on.calls == ["c"]
        assert (await coordinator.state(run)).rows["a"].attempt == 4


@virtual
async def test_an_odd_answer_for_no_run_is_kept_as_a_dead_letter() -> None:
    async with stage() as on:
        on.worker("w", "work")
        coordinator = await on.coordinator()
        for to in ("coordinator/nobody", "coordinator"):
            await on.protocol.send(hw.Message(type="result", sender="w", to=to, content=1, in_reply_to="x"))
        await on.protocol.send(hw.Message(type="heartbeat", sender="w", to="coordinator", content={"odd": 1}))
        result = await coordinator.execute(TaskRequest(name="t"), plan=plan(sub("a")))
        assert result.status == "completed"
        await asyncio.sleep(1)
        letters = await on.protocol.dead_letters("coordinator")
        assert [letter.message.to for letter in letters if letter.message] == ["coordinator/nobody", "coordinator"]
