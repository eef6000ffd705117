"""Redis loses everything while a run is under way: what was lost is noticed, and done after all."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import hivewire as hw
from hivewire.testing.conformance.waiting import until
from hivewire.testing.servers import RedisServer
from tests.needed import needed


@pytest.fixture
def redis(tmp_path: Path) -> Iterator[RedisServer]:
    server = RedisServer(tmp_path / "redis")
    try:
        with needed():
            server.start()
        yield server
    finally:
        server.kill()


@pytest.mark.timeout(120)
async def test_a_store_that_was_emptied_costs_a_new_attempt_and_no_run(redis: RedisServer, tmp_path: Path) -> None:
    calls: list[str] = []
    emptied = asyncio.Event()
    worker = hw.Worker("worker", capabilities=["work"], concurrency=2, mode="competing")

    @worker.on("task")
    async def handle(task: hw.Message, ctx: hw.Context) -> Any:
        calls.append(task.content["subtask"])
        await emptied.wait()
        return {"from": task.content["subtask"]}

    parts = [{"name": f"s{n}", "assigned_to": "work", "dependencies": []} for n in range(8)]
    last = {"name": "last", "assigned_to": "work", "dependencies": ["s*"]}
    async with (
        hw.open_ledger(f"sqlite:///{tmp_path}/ledger.db") as ledger,
        hw.connect(redis.url, lease_s=1) as protocol,
        hw.Coordinator(None, protocol, ledger=ledger, team=[worker], lease_s=1) as coordinator,
    ):
        serving = asyncio.create_task(worker.serve(protocol))
        run = await coordinator.start(hw.TaskRequest(name="t"), plan={"subtasks": [*parts, last]})
        await until(lambda: len(calls) == 2, "two are under way, six wait")
        assert redis.ask("FLUSHALL") == b"+OK"
        emptied.set()
        result = await coordinator.result(run, timeout_s=90)
        serving.cancel()
        await asyncio.wait([serving])
    assert result.status == "completed"
    assert set(result.output) == {"last", *(f"s{n}" for n in range(8))}
    assert {calls.count(f"s{n}") for n in range(8)} <= {1, 2}
