"""Several processes on one ledger, and a store that goes away."""

from __future__ import annotations

import asyncio
import sys
from asyncio.subprocess import PIPE, Process

import msgspec
import pytest

from hivewire.coordination.ledger import Guard, ProgressEntry, Task, TaskChange, TaskFilter, TaskStatus
from hivewire.coordination.ledger.cached import CachedLedger
from hivewire.errors import TaskMissing
from hivewire.testing.conformance.waiting import until
from hivewire.testing.ledgers.fabric import LedgerFabric

CHILD = "hivewire.testing.ledgers.child"


async def child(ledgers: LedgerFabric) -> Process:
    """Another process on the same ledger, which does what it is told."""
    settings = msgspec.json.encode(ledgers.settings).decode()
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", CHILD, ledgers.url, settings, stdin=PIPE, stdout=PIPE
    )
    assert await ask(process, "ready") == "ready"
    return process


async def ask(process: Process, *order: str) -> str:
    """Give an order and wait for what comes of it."""
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(" ".join(order).encode() + b"\n")
    answer = await asyncio.wait_for(process.stdout.readline(), 30)
    return answer.decode().strip()


async def end(process: Process) -> None:
    assert process.stdin is not None
    process.stdin.close()
    assert await asyncio.wait_for(process.wait(), 30) == 0


@pytest.mark.processes
async def test_another_process_s_change_is_seen_at_once(ledgers: LedgerFabric) -> None:
    """Defect 27: what another process had changed was seen up to five minutes later."""
    if not ledgers.shared:
        return await two_objects(ledgers)
    ledger = await ledgers.open()
    other = await child(ledgers)
    task = await ledger.create_task(Task(name="t", input={"n": 0}))
    for priority in range(1, 11):
        assert await ask(other, "priority", task.id, str(priority)) == str(priority)
        assert (await ledger.get_task(task.id)).priority == priority
        mine = await ledger.update_task(task.id, TaskChange(priority=11 - priority))
        assert await ask(other, "get", task.id) == f"{11 - priority} {mine.version}"
    assert await ask(other, "delete", task.id) == "deleted"
    with pytest.raises(TaskMissing):
        await ledger.get_task(task.id)
    assert await ask(other, "create", task.id) == "1"
    assert (await ledger.get_task(task.id)).name == "from the child"
    await end(other)
    return None


async def two_objects(ledgers: LedgerFabric) -> None:
    """A store inside the process: what one object writes, its own reads see."""
    ledger = await ledgers.open()
    task = await ledger.create_task(Task(name="t"))
    for priority in range(1, 11):
        await ledger.update_task(task.id, TaskChange(priority=priority))
        assert (await ledger.get_task(task.id)).priority == priority


@pytest.mark.processes
async def test_writers_in_two_processes_lose_nothing(ledgers: LedgerFabric) -> None:
    """Each adds 30 to a counter, under the version that it read."""
    if not ledgers.shared:
        return
    ledger = await ledgers.open()
    task = await ledger.create_task(Task(name="t", metadata={"n": 0}))
    others = [await child(ledgers) for _ in range(2)]
    assert await asyncio.gather(*(ask(other, "add", task.id, "30") for other in others)) == ["done", "done"]
    final = await ledger.get_task(task.id)
    assert (final.metadata, final.version) == ({"n": 60}, 61)
    assert [entry.version for entry in await ledger.history(task.id)] == list(range(1, 62))
    for other in others:
        await end(other)


@pytest.mark.processes
async def test_a_process_that_is_killed_leaves_whole_changes(ledgers: LedgerFabric) -> None:
    """Killed while it creates tasks with a step each and completes them: nothing half-made is there."""
    if not ledgers.shared:
        return
    ledger = await ledgers.open()
    other = await child(ledgers)
    assert other.stdin is not None
    assert other.stdout is not None
    other.stdin.write(b"work\n")
    confirmed = [(await other.stdout.readline()).decode().strip() for _ in range(20)]
    other.kill()
    await other.wait()
    confirmed += [line.decode().strip() for line in (await other.stdout.read()).splitlines() if len(line) == 36]
    stored = {task.id: task for task in await ledger.list_tasks(TaskFilter(limit=10_000))}
    for task_id in confirmed:
        assert stored[task_id].status is TaskStatus.COMPLETED
    for task in stored.values():
        assert len(await ledger.history(task.id)) == task.version
    assert len(stored) <= len(confirmed) + 1


async def test_one_object_may_be_used_by_many_tasks(ledgers: LedgerFabric) -> None:
    """Defect 27: the cache's maps had no lock."""
    ledger = await ledgers.open()
    tasks = [await ledger.create_task(Task(name=f"t{n}", metadata={"n": n})) for n in range(10)]

    async def use(n: int) -> None:
        for _ in range(10):
            seen = await ledger.get_task(tasks[n % 10].id)
            assert seen.metadata["n"] == n % 10
            await ledger.update_task(seen.id, TaskChange(priority=1 + n % 10))

    await asyncio.gather(*(use(n) for n in range(30)))
    assert sum(task.version for task in await ledger.list_tasks()) == 10 + 300


async def test_a_cache_asks_for_many_at_once(ledgers: LedgerFabric) -> None:
    ledger = await ledgers.open()
    if not isinstance(ledger, CachedLedger):
        return
    made = [await ledger.create_task(Task(name="t")) for _ in range(50)]
    asked: list[int] = []
    real = ledger.inner.marks

    async def counted(ids: list[str]) -> dict[str, tuple[int, float]]:
        asked.append(len(ids))
        return await real(ids)

    ledger.inner.marks = counted  # type: ignore[assignment,method-assign]  # counts what goes to the store
    assert await asyncio.gather(*(ledger.get_task(task.id) for task in made)) == made
    assert sum(asked) == 50
    assert len(asked) <= 2


@pytest.mark.processes
@pytest.mark.slow
async def test_a_store_that_goes_away_and_comes_back(ledgers: LedgerFabric) -> None:
    """Writers under way go on when it is back: each change happened once, and nothing that was confirmed is lost."""
    if not ledgers.has_outages:
        return
    ledger = await ledgers.open()
    done: dict[str, int] = {}
    stop = asyncio.Event()

    async def more_than(number: int) -> None:
        await until(lambda: len(done) > number, f"{number} tasks are done", 40)

    async def work(name: str) -> None:
        while not stop.is_set():
            task = await ledger.create_task(Task(name=name))
            task = await ledger.update_task(task.id, TaskChange(status=TaskStatus.IN_PROGRESS))
            await ledger.record_progress(ProgressEntry(task_id=task.id, action="work"))
            task = await ledger.complete_task(task.id, {"by": name}, Guard(version=task.version))
            done[task.id] = task.version

    async with asyncio.TaskGroup() as group:
        for n in range(8):
            group.create_task(work(f"w{n}"))
        for _ in range(3):
            await more_than(len(done) + 50)
            async with ledgers.outage():
                await asyncio.sleep(0.3)
        await more_than(len(done) + 50)
        stop.set()
    assert len(done) >= 200
    for task_id, version in done.items():
        task = await ledger.get_task(task_id)
        assert (task.status, task.version, version) == (TaskStatus.COMPLETED, 3, 3)
        assert [entry.version for entry in await ledger.history(task_id)] == [1, 2, 3]
        assert await ledger.current_step(task_id) == 1
    assert await ledger.count_tasks() == len(done)


@pytest.mark.processes
async def test_health_turns_red_and_green_again(ledgers: LedgerFabric) -> None:
    ledger = await ledgers.open()
    assert (await ledger.health()).ok
    if not ledgers.has_outages or (await ledger.health()).kind == "sqlite":
        return  # a file that is locked for writing can be read
    async with ledgers.outage():
        began = asyncio.get_running_loop().time()
        health = await ledger.health()
        assert not health.ok
        assert health.detail
        assert asyncio.get_running_loop().time() - began < 5
    assert (await ledger.health()).ok
