"""kill -9 of senders and workers at any point: nothing lost, order kept, the file whole."""

from __future__ import annotations

import random
import sqlite3

import pytest

from hivewire.delivery import Delivery
from hivewire.testing.conformance.fabric import Fabric
from hivewire.testing.conformance.journal import first_seen, overlapping
from hivewire.testing.conformance.scenario import counts, empty, send_numbered, serving, take, task
from hivewire.testing.conformance.waiting import count, until_true
from tests.conformance.backends import SQLiteFabric

pytestmark = [pytest.mark.processes, pytest.mark.timeout(600)]


def check_file(fabric: Fabric) -> None:
    assert isinstance(fabric, SQLiteFabric)
    db = sqlite3.connect(fabric.path)
    try:
        assert db.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    finally:
        db.close()


async def test_a_storm_of_kills_on_both_ends(fabric: Fabric) -> None:
    """Senders and workers are killed at random moments again and again; what was confirmed is handled."""
    chance = random.Random(count(3, 4))
    rounds = count(8, 100)
    settings = {"max_attempts": 1000}
    killed: list[str] = []
    for _ in range(rounds):
        sender = await fabric.worker("storm", program="send", count=100_000, keys=4)
        worker = await fabric.worker("storm", concurrency=4, settings=settings)
        for victim in chance.sample([sender, worker], 2):
            goal = len(fabric.journal.entries()) + chance.randrange(5, 200)
            await _traffic(fabric, goal)
            victim.kill()
            await victim.ended()
            killed.append(victim.name)
    await fabric.worker("storm", concurrency=8, settings=settings)
    await empty(fabric.protocol, "storm", within_s=120)
    promised = {entry.id for entry in fabric.journal.entries("sent")}
    done = {entry.id for entry in fabric.journal.ends("storm") if entry.note == "done"}
    assert promised <= done
    assert counts(await fabric.protocol.depth("storm")) == (0, 0, 0, 0)
    for key, numbers in first_seen(fabric.journal.starts("storm")).items():
        assert numbers == sorted(numbers), key
    assert overlapping(fabric.journal.entries("start", "end", agent="storm"), dead=killed) == []
    check_file(fabric)


async def _traffic(fabric: Fabric, goal: int) -> None:
    """Until so much has happened, or the queue is empty: a worker whose sender is dead runs dry."""

    async def enough() -> bool:
        return len(fabric.journal.entries()) >= goal or (await fabric.protocol.depth("storm")).ready == 0

    await until_true(enough, "traffic", 30)


async def test_nothing_finished_long_before_the_kill_is_done_again(fabric: Fabric) -> None:
    worker = await fabric.worker("done", concurrency=2)
    await send_numbered(fabric.protocol, "done", 20, keys=["a", "b", "c"])
    await empty(fabric.protocol, "done")
    worker.kill()
    await worker.ended()
    await fabric.protocol.send(task("done", 20, key="a"))
    await fabric.worker("done", concurrency=2)
    await empty(fabric.protocol, "done")
    assert len(fabric.journal.starts("done")) == 61
    check_file(fabric)


async def test_many_processes_open_a_new_file_at_once(fabric: Fabric) -> None:
    import asyncio

    workers = await asyncio.gather(*(fabric.worker("rush", program="send", count=20, name=f"s{n}") for n in range(6)))
    for worker in workers:
        assert await worker.ended(40) == 0
    taken = await take(fabric.protocol, "rush", 120)
    assert len({delivery.message.id for delivery in taken}) == 120
    check_file(fabric)


async def test_the_file_stays_small(fabric: Fabric) -> None:
    """Handled messages leave room behind; the file is bounded by what is in it, not by what went through."""
    assert isinstance(fabric, SQLiteFabric)

    async def handle(delivery: Delivery) -> None:
        assert delivery.message.content

    sizes = []
    async with serving(fabric.protocol, "flow", handle, concurrency=8):
        for _ in range(count(14, 100)):
            await send_numbered(fabric.protocol, "flow", 100, keys=[f"k{n}" for n in range(20)])
            await empty(fabric.protocol, "flow", within_s=40)
            await fabric.protocol.cleanup(0)
            sizes.append(sum(file.stat().st_size for file in fabric.path.parent.glob("hive.db*")))
    # The log is used again from about 8 MB on; the tables hold what the last round left.
    assert max(sizes) < 14_000_000, sizes
    assert sizes[-1] < 1.2 * sizes[-4] + 100_000, sizes
