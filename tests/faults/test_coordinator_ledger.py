"""The database of the ledger is killed in the middle of a plan and comes back: the run goes on."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterator
from typing import Any
from uuid import uuid4

import pytest

import hivewire as hw
from hivewire.coordination.ledger import TaskFilter
from hivewire.testing.conformance.waiting import until, until_true
from hivewire.testing.postgres import PostgresServer
from tests.needed import needed

NAMES = [f"s{n}" for n in range(16)]


@pytest.fixture
def postgres() -> Iterator[PostgresServer]:
    server = PostgresServer()
    try:
        with needed():
            server.start()
        yield server
    finally:
        server.remove()


@pytest.mark.slow
@pytest.mark.timeout(180)
async def test_a_run_goes_on_when_its_ledger_is_killed_and_comes_back(postgres: PostgresServer) -> None:
    calls: Counter[str] = Counter()
    free = asyncio.Event()
    worker = hw.Worker("w", capabilities=["work"], concurrency=4, mode="competing")

    @worker.on("task")
    async def handle(task: hw.Message, ctx: hw.Context) -> dict[str, Any]:
        calls[task.content["subtask"]] += 1
        if calls.total() >= 6:
            await free.wait()
        return {"saw": sorted(task.content["outputs"])}

    parts = [
        {"name": name, "assigned_to": "work", "dependencies": NAMES[max(0, n - 4) : max(0, n - 2)]}
        for n, name in enumerate(NAMES)
    ]
    async with (
        hw.connect(f"memory://{uuid4().hex}") as protocol,
        hw.open_ledger(postgres.url, migrate=True) as ledger,
        hw.Coordinator(None, protocol, ledger=ledger, team=[worker]) as coordinator,
    ):
        serving = asyncio.create_task(worker.serve(protocol))
        run = await coordinator.start(hw.TaskRequest(name="t"), plan={"subtasks": parts})
        await until(lambda: calls.total() >= 6, "it is in the middle")
        await asyncio.to_thread(postgres.kill)
        free.set()

        async def waits() -> bool:
            depth = await protocol.depth("coordinator")
            return depth.ready + depth.in_flight > 0 and not (await protocol.depth("w")).in_flight

        await until_true(waits, "answers wait for the ledger")
        health = await coordinator.health()
        assert (health.status, health.components["ledger"]) == ("unhealthy", False)
        await asyncio.to_thread(postgres.start)
        result = await coordinator.result(run, timeout_s=90)
        serving.cancel()
        await asyncio.wait([serving])
        done = await ledger.list_tasks(TaskFilter(parent_id=run))
        told = {part.name: [str(entry.status) for entry in await ledger.history(part.id)] for part in done}
    assert (result.status, sorted(result.output)) == ("completed", sorted(NAMES))
    assert calls == dict.fromkeys(NAMES, 1)
    assert {name: entries.count("completed") for name, entries in told.items()} == dict.fromkeys(NAMES, 1)
