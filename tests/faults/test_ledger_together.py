"""Writes that go to PostgreSQL in one transaction with those of others: each has its own outcome, and waits for its
own locks only."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from uuid import uuid4

import asyncpg
import pytest

import hivewire as hw
from hivewire.coordination.ledger import Ledger, Task, TaskChange, TaskFilter, TaskStatus
from hivewire.coordination.ledger.pool import Connection
from hivewire.coordination.ledger.stored import StoredLedger
from hivewire.errors import BackendError, Closed, LedgerError
from hivewire.testing.conformance.waiting import until, until_true
from hivewire.testing.postgres import PostgresServer
from tests.needed import needed


@pytest.fixture(scope="module")
def server() -> Iterator[PostgresServer]:
    server = PostgresServer()
    try:
        with needed():
            server.start()
        yield server
    finally:
        server.remove()


@pytest.fixture
async def ledger(server: PostgresServer) -> AsyncIterator[Ledger]:
    async with hw.open_ledger(f"{server.url}?schema=t_{uuid4().hex}", migrate=True) as ledger:
        yield ledger


@pytest.fixture
async def other(server: PostgresServer, ledger: Ledger) -> AsyncIterator[Connection]:
    """A connection of somebody else to the same tables."""
    assert isinstance(ledger, StoredLedger)
    schema = f'"{ledger.store.schema}"'
    connection = await asyncpg.connect(server.url, server_settings={"search_path": schema})
    yield connection
    await connection.close()


async def commits(other: Connection) -> int:
    """Transactions that have written to the tables of tasks."""
    return len(await other.fetch("SELECT DISTINCT xmin::text FROM task_history"))


async def test_what_waits_together_is_one_transaction(ledger: Ledger, other: Connection) -> None:
    made = await asyncio.gather(*(ledger.create_task(Task(name=f"t{n}")) for n in range(200)))
    assert [task.name for task in made] == [f"t{n}" for n in range(200)]
    assert await commits(other) <= 50
    changed = await asyncio.gather(
        *(ledger.update_task(task.id, TaskChange(metadata={"of": task.id})) for task in made)
    )
    assert [task.metadata["of"] for task in changed] == [task.id for task in made]
    assert await commits(other) <= 100


async def test_many_changes_of_one_task_at_once(ledger: Ledger) -> None:
    task = await ledger.create_task(Task(name="t"))
    changed = await asyncio.gather(*(ledger.update_task(task.id, TaskChange(metadata={"n": n})) for n in range(100)))
    assert sorted(each.version for each in changed) == list(range(2, 102))
    assert [each.metadata for each in changed] == [{"n": n} for n in range(100)]
    assert len(await ledger.history(task.id)) == 101


@pytest.mark.timeout(120)
async def test_who_waits_for_a_lock_does_not_hold_up_the_others(ledger: Ledger, other: Connection) -> None:
    """Somebody's own transaction has three tasks: what the others write is stored all the same."""
    tasks = await asyncio.gather(*(ledger.create_task(Task(name=f"t{n}")) for n in range(60)))
    held = {task.id for task in tasks[::20]}
    transaction = other.transaction()
    await transaction.start()
    await other.execute("UPDATE tasks SET priority = 1 WHERE id = ANY($1)", list(held))
    writing = {
        task.id: asyncio.create_task(ledger.update_task(task.id, TaskChange(metadata={"n": n})))
        for n, task in enumerate(tasks)
    }
    free = [writing[task.id] for task in tasks if task.id not in held]
    await until(lambda: all(each.done() for each in free), "the others have written", 20)
    later = await asyncio.gather(*(ledger.create_task(Task(name="later")) for _ in range(20)))
    assert len(later) == 20
    assert not any(writing[task_id].done() for task_id in held)
    await transaction.commit()
    assert [(await each).version for each in writing.values()] == [2] * 60
    assert {(await ledger.get_task(task_id)).priority for task_id in held} == {1}


async def test_a_row_that_the_database_refuses_spoils_nothing_but_itself(ledger: Ledger, other: Connection) -> None:
    """A rule of the user's own, which the ledger knows nothing of."""
    await other.execute("ALTER TABLE tasks ADD CONSTRAINT own CHECK (name <> 'bad')")
    names = ["bad" if n % 10 == 3 else f"t{n}" for n in range(50)]
    outcomes = await asyncio.gather(*(ledger.create_task(Task(name=name)) for name in names), return_exceptions=True)
    for name, outcome in zip(names, outcomes, strict=True):
        if name == "bad":
            assert isinstance(outcome, LedgerError)
            assert "own" in str(outcome)
        else:
            assert isinstance(outcome, Task)
    assert await ledger.count_tasks() == 45


async def test_who_is_cancelled_takes_nobody_along(ledger: Ledger) -> None:
    """At whatever point: the others are stored, and whoever was cancelled is there whole or not at all."""
    for pauses in range(12):
        before = await ledger.count_tasks()
        writing = [asyncio.create_task(ledger.create_task(Task(name=f"{pauses}-{n}"))) for n in range(40)]
        for _ in range(pauses):
            await asyncio.sleep(0)
        for each in writing[::2]:
            each.cancel()
        outcomes = await asyncio.gather(*writing, return_exceptions=True)
        assert [type(outcome) for outcome in outcomes[1::2]] == [Task] * 20
        assert before + 20 <= await ledger.count_tasks() <= before + 40
    for task in await ledger.list_tasks(TaskFilter(limit=1_000)):
        assert [entry.version for entry in await ledger.history(task.id)] == [1]


@pytest.mark.timeout(120)
async def test_what_waits_when_it_is_closed_is_told(server: PostgresServer) -> None:
    ledger = hw.open_ledger(f"{server.url}?schema=t_{uuid4().hex}", migrate=True)
    await ledger.open()
    writing = [asyncio.create_task(ledger.create_task(Task(name=f"t{n}"))) for n in range(2_000)]
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    await ledger.close()
    outcomes = await asyncio.wait_for(asyncio.gather(*writing, return_exceptions=True), 30)
    assert Closed in {type(outcome) for outcome in outcomes} <= {Task, Closed}
    stored = sum(isinstance(outcome, Task) for outcome in outcomes)
    async with ledger:
        assert await ledger.count_tasks() == stored


@pytest.mark.slow
@pytest.mark.timeout(240)
async def test_connections_that_are_cut_again_and_again(ledger: Ledger, server: PostgresServer) -> None:
    """Whatever was on the way: each change happened once, told or found out by asking again."""
    done: Counter[str] = Counter()
    ended = asyncio.Event()
    admin = await asyncpg.connect(server.url)

    async def work() -> None:
        while not ended.is_set():
            task = await ledger.create_task(Task(name="t"))
            for status in (TaskStatus.IN_PROGRESS, TaskStatus.COMPLETED):
                task = await ledger.update_task(task.id, TaskChange(status=status))
            done[task.id] = task.version

    async with asyncio.TaskGroup() as group:
        for _ in range(16):
            group.create_task(work())
        for _ in range(8):
            goal = len(done) + 30
            await until(lambda goal=goal: len(done) > goal, "some are done", 60)  # type: ignore[misc]  # bound above
            await admin.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid() "
                "AND application_name = 'hivewire'"
            )
        ended.set()
    await admin.close()
    assert set(done.values()) == {3}
    for task_id in done:
        assert [entry.version for entry in await ledger.history(task_id)] == [1, 2, 3]

    async def all_are_known() -> bool:
        return await ledger.count_tasks() == len(done)

    await until_true(all_are_known, "no task is there twice")


async def backends(other: Connection) -> set[int]:
    rows = await other.fetch("SELECT pid FROM pg_stat_activity WHERE application_name = 'hivewire'")
    return {pid for (pid,) in rows}


@pytest.mark.parametrize("idle", [0, 1, 25])
async def test_connections_are_used_again(server: PostgresServer, idle: int) -> None:
    """Sixteen who read and write at once, however few may stay open when nobody does."""
    admin = await asyncpg.connect(server.url)
    before = await backends(admin)
    async with hw.open_ledger(f"{server.url}?schema=t_{uuid4().hex}&idle_conns={idle}", migrate=True) as ledger:
        tasks = await asyncio.gather(*(ledger.create_task(Task(name="t")) for _ in range(16)))
        await asyncio.gather(*(ledger.get_task(task.id) for task in tasks))
        used = await backends(admin) - before
        for _ in range(5):
            await asyncio.gather(*(ledger.get_task(task.id) for task in tasks))
            await asyncio.gather(*(ledger.update_task(task.id, TaskChange(priority=1)) for task in tasks))
        assert len((await backends(admin)) & used) >= len(used) - 2, "closed and opened again"
    await until_true(lambda: _is(admin, before), "all are closed", 20)
    await admin.close()


async def _is(admin: Connection, wanted: set[int]) -> bool:
    return await backends(admin) <= wanted


async def test_closing_that_is_cancelled_leaves_no_connection(server: PostgresServer) -> None:
    admin = await asyncpg.connect(server.url)
    before = await backends(admin)
    ledger = hw.open_ledger(f"{server.url}?schema=t_{uuid4().hex}", migrate=True)
    await ledger.open()
    assert isinstance(ledger, StoredLedger)
    schema = f'"{ledger.store.schema}"'
    other = await asyncpg.connect(server.url, server_settings={"search_path": schema})
    task = await ledger.create_task(Task(name="t"))
    transaction = other.transaction()
    await transaction.start()
    await other.execute("UPDATE tasks SET priority = 1")
    writing = asyncio.create_task(ledger.update_task(task.id, TaskChange(priority=2)))
    await asyncio.sleep(0.05)
    closing = asyncio.create_task(ledger.close())
    await asyncio.sleep(0.05)
    closing.cancel()
    await asyncio.wait([closing])
    assert closing.cancelled()
    await asyncio.wait([writing])
    assert isinstance(writing.exception(), (Closed, BackendError))
    await transaction.rollback()
    await other.close()
    await until_true(lambda: _is(admin, before), "all are closed", 20)
    await admin.close()
