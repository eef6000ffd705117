"""Effects that a ledger remembers: once, whoever asks and whoever dies in between."""

from __future__ import annotations

import asyncio
import sys
from asyncio.subprocess import PIPE
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch
from uuid import uuid4

import msgspec
import pytest

from hivewire.coordination.effects import TYPE, LedgerEffects
from hivewire.coordination.ledger import Guard, Task, TaskFilter, TaskStatus
from hivewire.coordination.ledger.contract import UNGUARDED
from hivewire.coordination.worker import Context, Worker
from hivewire.errors import ConnectionLost, LeaseLost, Reject
from hivewire.factory import connect
from hivewire.message import Message
from hivewire.rules.retry import Retry
from hivewire.testing.conformance.waiting import count
from hivewire.testing.ledgers.fabric import LedgerFabric

LEASE_S = 1.0
PAYER = "hivewire.testing.ledgers.payer"


def nothing() -> Any:
    async def compute() -> None:
        raise AssertionError("computed again")

    return compute


async def test_of_many_who_ask_at_once_one_computes(ledgers: LedgerFabric) -> None:
    ledger = await ledgers.open()
    computed: list[int] = []

    async def compute() -> dict[str, int]:
        computed.append(1)
        await asyncio.sleep(0.05)
        return {"n": len(computed)}

    effects = [LedgerEffects(ledger, lease_s=LEASE_S) for _ in range(2)]
    assert await asyncio.gather(*(each.once("pay", compute) for each in effects for _ in range(5))) == [{"n": 1}] * 10
    assert computed == [1]
    (task,) = await ledger.list_tasks(TaskFilter(statuses=(TaskStatus.COMPLETED,)))
    assert (task.type, task.name, task.output) == (TYPE, "pay", {"n": 1})
    assert await effects[0].once("pay", nothing()) == {"n": 1}


async def test_after_a_failure_it_is_looked_for_and_then_done(ledgers: LedgerFabric) -> None:
    effects = LedgerEffects(await ledgers.open(), lease_s=LEASE_S)
    looked: list[int] = []

    async def fail() -> None:
        raise OSError("in between")

    async def look() -> str | None:
        looked.append(1)
        return None if len(looked) == 1 else "found"

    for tries in range(2):  # the first has nothing to look for, the second looks and finds nothing
        with pytest.raises(OSError, match="in between"):
            await effects.once("pay", fail, look)
        assert len(looked) == tries
    assert await effects.once("pay", fail, look) == "found"
    assert await effects.once("pay", nothing()) == "found"


async def test_a_result_comes_back_as_from_the_store_of_messages(ledgers: LedgerFabric) -> None:
    worker = Worker("odd", effects=LedgerEffects(await ledgers.open(), lease_s=LEASE_S))
    happened: list[Any] = [{1, 2}, b"bytes", float("nan"), (1, {2: 3})]
    results: list[Any] = []
    done = asyncio.Event()

    @worker.on("task", retry=Retry(max_attempts=2, first_s=0.01))
    async def handle(message: Message, ctx: Context) -> None:
        results.extend([await ctx.once(f"n{number}", partial(happened.__getitem__, number)) for number in range(4)])
        done.set()

    async with connect(f"memory://{uuid4().hex}") as protocol:
        serving = asyncio.create_task(worker.serve(protocol, stop=done.wait()))
        await protocol.send(Message(type="task", sender="test", to="odd"))
        await serving
    assert results == [[1, 2], "Ynl0ZXM=", None, [1, {"2": 3}]]


async def test_a_result_that_the_ledger_refuses_is_not_made_again(ledgers: LedgerFabric) -> None:
    effects = LedgerEffects(await ledgers.open(), lease_s=LEASE_S)
    nested: list[Any] = []
    for _ in range(150):
        nested = [nested]

    async def happen() -> Any:
        return nested

    with pytest.raises(Reject, match="the effect has happened, and its result cannot be stored: "):
        await effects.once("pay", happen)


async def test_an_error_that_nobody_expects_holds_no_effect_for_ever(ledgers: LedgerFabric) -> None:
    ledger = await ledgers.open()
    effects = LedgerEffects(ledger, lease_s=LEASE_S)

    async def odd(*_: Any, **__: Any) -> None:
        raise RuntimeError("a bug")

    with patch.object(ledger, "complete_task", odd), pytest.raises(RuntimeError, match="a bug"):
        await effects.once("pay", _happening(asyncio.Event()))
    assert [task.get_name() for task in asyncio.all_tasks() if "effect" in task.get_name()] == []
    assert await effects.once("pay", _happening(asyncio.Event())) == "paid"


async def test_a_worker_that_stops_ends_no_effect_of_others(ledgers: LedgerFabric) -> None:
    ledger = await ledgers.open()
    effects, complete, storing = LedgerEffects(ledger, lease_s=LEASE_S), ledger.complete_task, asyncio.Event()
    goes_on = asyncio.Event()

    async def slowly(task_id: str, output: Any = None, guard: Guard = UNGUARDED) -> Task:
        storing.set()
        await goes_on.wait()
        return await complete(task_id, output, guard)

    with patch.object(ledger, "complete_task", slowly):
        calling = asyncio.create_task(effects.once("pay", _happening(asyncio.Event())))
        await storing.wait()
        effects.begin_use()
        await effects.end_use()
        goes_on.set()
        assert await calling == "paid"


async def test_what_has_happened_is_stored_though_the_caller_is_cancelled(ledgers: LedgerFabric) -> None:
    effects = LedgerEffects(await ledgers.open(), lease_s=LEASE_S)
    for turns in range(6):
        calling = asyncio.create_task(effects.once(f"pay {turns}", _happening(has_happened := asyncio.Event())))
        await has_happened.wait()
        for _ in range(turns):
            await asyncio.sleep(0)
        calling.cancel()
        await asyncio.wait([calling])
        assert await effects.once(f"pay {turns}", nothing()) == "paid"


@pytest.mark.parametrize("has_happened", [True, False], ids=["happened", "under way"])
async def test_nothing_is_left_of_a_worker_that_stops_while_the_ledger_is_away(
    ledgers: LedgerFabric, has_happened: bool
) -> None:
    ledger = await ledgers.open()
    worker = Worker("payer", effects=LedgerEffects(ledger, lease_s=LEASE_S))
    began = asyncio.Event()

    @worker.on("task")
    async def handle(message: Message, ctx: Context) -> None:
        await ctx.once("pay", _happening(began) if has_happened else partial(_endless, began))

    async def away(*_: Any, **__: Any) -> None:
        await asyncio.Event().wait()

    async with connect(f"memory://{uuid4().hex}") as protocol:
        serving = asyncio.create_task(worker.serve(protocol, stop=began.wait(), drain_s=0.1))
        with patch.multiple(ledger, complete_task=away, renew=away, release=away):
            await protocol.send(Message(type="task", sender="test", to="payer"))
            await serving
            assert [task.get_name() for task in asyncio.all_tasks() if "effect" in task.get_name()] == []


async def _endless(began: asyncio.Event) -> None:
    began.set()
    await asyncio.Event().wait()


async def test_who_is_cancelled_ends_after_its_effect_is_stored(ledgers: LedgerFabric) -> None:
    """Its process may end with it."""
    ledger = await ledgers.open()
    effects, complete, storing = LedgerEffects(ledger, lease_s=LEASE_S), ledger.complete_task, asyncio.Event()

    async def slowly(task_id: str, output: Any = None, guard: Guard = UNGUARDED) -> Task:
        storing.set()
        await asyncio.sleep(0.1)
        return await complete(task_id, output, guard)

    with patch.object(ledger, "complete_task", slowly):
        calling = asyncio.create_task(effects.once("pay", _happening(asyncio.Event())))
        await storing.wait()
        calling.cancel()
        await asyncio.wait([calling])
        assert calling.cancelled()
        assert len(await ledger.list_tasks(TaskFilter(statuses=(TaskStatus.COMPLETED,)))) == 1


async def test_what_has_happened_is_stored_when_the_ledger_is_back(ledgers: LedgerFabric) -> None:
    ledger = await ledgers.open()
    effects, complete, failing = LedgerEffects(ledger, lease_s=LEASE_S), ledger.complete_task, 0

    async def away(task_id: str, output: Any = None, guard: Guard = UNGUARDED) -> Task:
        nonlocal failing
        failing += 1
        if failing == 3:  # it was stored, and the answer is lost
            await complete(task_id, output, guard)
        if failing < 4:
            raise ConnectionLost("the ledger is away")
        return await complete(task_id, output, guard)

    with patch.object(ledger, "complete_task", away):
        assert await effects.once("pay", _happening(asyncio.Event())) == "paid"
    assert failing == 4
    assert await effects.once("pay", nothing()) == "paid"


def _happening(event: asyncio.Event) -> Any:
    async def happen() -> str:
        event.set()
        return "paid"

    return happen


async def test_an_effect_longer_than_the_lease_stays_with_who_began_it(ledgers: LedgerFabric) -> None:
    ledger = await ledgers.open()
    began = asyncio.Event()

    async def slow() -> str:
        began.set()
        await asyncio.sleep(1.6 * LEASE_S)
        return "first"

    first = asyncio.create_task(LedgerEffects(ledger, lease_s=LEASE_S).once("pay", slow))
    await began.wait()
    assert await LedgerEffects(ledger, lease_s=LEASE_S).once("pay", nothing()) == "first"
    assert await first == "first"


class Silent(LedgerEffects):
    """Its lease runs out as soon as it has it."""

    async def _owned(self, id: str, lease: Any, fn: Any, find: Any) -> Any:
        await self._ledger.release(lease)
        return await super()._owned(id, lease, fn, find)


async def test_who_was_silent_gets_what_was_stored_meanwhile(ledgers: LedgerFabric) -> None:
    ledger = await ledgers.open()

    async def right() -> str:
        return "right"

    async def late() -> str:
        assert await LedgerEffects(ledger, lease_s=LEASE_S).once("pay", right) == "right"
        return "late"

    assert await Silent(ledger, lease_s=LEASE_S).once("pay", late) == "right"


async def test_who_was_silent_stores_nothing(ledgers: LedgerFabric) -> None:
    """Its lease runs out, another takes over and is at it when the first one ends."""
    ledger = await ledgers.open()
    taken_over, may_end = asyncio.Event(), asyncio.Event()

    async def right() -> str:
        taken_over.set()
        await may_end.wait()
        return "right"

    async def late() -> str:
        others.append(asyncio.create_task(LedgerEffects(ledger, lease_s=LEASE_S).once("pay", right)))
        await taken_over.wait()
        return "late"

    others: list[asyncio.Task[Any]] = []
    with pytest.raises(LeaseLost):
        await Silent(ledger, lease_s=LEASE_S).once("pay", late)
    may_end.set()
    assert await others[0] == "right"
    assert await LedgerEffects(ledger, lease_s=LEASE_S).once("pay", nothing()) == "right"


@pytest.mark.slow
@pytest.mark.processes
@pytest.mark.timeout(3600)
async def test_effects_happen_once_though_processes_die_between_effect_and_record(
    ledgers: LedgerFabric, tmp_path: Path
) -> None:
    """Every other process is killed after its effect and before that is stored; without `find` it would be doubled."""
    if not ledgers.shared:
        return
    await ledgers.open()
    path, effects = tmp_path / "effects.txt", count(6, 1000)
    settings = msgspec.json.encode(ledgers.settings).decode()

    async def pay(first: int, last: int, *, dies: bool) -> int:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", PAYER, ledgers.url, settings, str(path), str(first), str(last), str(int(dies)),
            stdin=PIPE, stdout=PIPE,
        )  # fmt: skip
        await process.communicate()
        assert process.returncode is not None
        return process.returncode

    for n in range(0, effects, 2):
        assert await pay(n, n + 1, dies=True) == -9
    assert await pay(0, effects, dies=False) == 0
    lines = Counter(path.read_text().split())
    assert len(lines) == effects
    assert set(lines.values()) == {1}
