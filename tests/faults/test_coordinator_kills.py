"""Coordinators and workers on Redis and PostgreSQL, one of them killed every second: every run ends as it should."""

from __future__ import annotations

import asyncio
import os
import random
import subprocess
import sys
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

import hivewire as hw
from hivewire.coordination.ledger import TaskFilter, TaskStatus
from hivewire.testing.conformance.waiting import count
from tests.faults.coordination_member import LEASE_S

SUBTASKS = 12


def random_plan(chance: random.Random) -> dict[str, Any]:
    """Twelve subtasks, each of which waits for some of those before it; not listed in order."""
    parts = [
        {
            "name": f"s{n}",
            "assigned_to": "work",
            "dependencies": [f"s{k}" for k in range(n) if chance.random() < 0.25],
            "priority": chance.randint(1, 10),
        }
        for n in range(SUBTASKS)
    ]
    chance.shuffle(parts)
    return {"subtasks": parts}


class Members:
    """The processes; one that is killed is replaced while the others work on."""

    def __init__(self, redis: str, postgres: str, file: Path) -> None:
        self._rest = [redis, postgres, str(file)]
        self.kills: Counter[str] = Counter()
        self._ready: list[tuple[str, subprocess.Popen[bytes]]] = []
        self._starting: set[asyncio.Task[None]] = set()

    async def start(self, kind: str) -> None:
        command = [sys.executable, "-m", "tests.faults.coordination_member", kind, *self._rest]
        process = await asyncio.to_thread(subprocess.Popen, command, stdout=subprocess.PIPE)
        try:
            assert process.stdout is not None
            assert await asyncio.to_thread(process.stdout.readline) == b"ready\n"
        except BaseException:
            end(process)
            raise
        self._ready.append((kind, process))

    def kill_one(self, chance: random.Random) -> None:
        """One of those of whom fewer were killed; the last of its kind is spared until its like has come."""
        kinds = Counter(kind for kind, _ in self._ready)
        able = [member for member in self._ready if kinds[member[0]] > 1]
        if not able:
            return
        fewest = min(self.kills[kind] for kind, _ in able)
        able = [member for member in able if self.kills[member[0]] == fewest]
        kind, process = chance.choice(able)
        self._ready.remove((kind, process))
        end(process)
        self.kills[kind] += 1
        task = asyncio.create_task(self.start(kind))
        self._starting.add(task)
        task.add_done_callback(self._starting.discard)

    async def stop(self) -> None:
        await asyncio.gather(*self._starting)
        for _, process in self._ready:
            end(process)


def end(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait()
    assert process.stdout is not None
    process.stdout.close()


@asynccontextmanager
async def members(redis: str, postgres: str, file: Path) -> AsyncIterator[Members]:
    made = Members(redis, postgres, file)
    try:
        await asyncio.gather(*(made.start(kind) for kind in ("coordinator", "worker") * 3))
        yield made
    finally:
        await made.stop()


@pytest.mark.processes
@pytest.mark.slow
@pytest.mark.timeout(3_600 if os.environ.get("HIVEWIRE_SOAK") == "1" else 180)
async def test_every_run_ends_though_a_process_is_killed_every_second(servers: tuple[str, str], tmp_path: Path) -> None:
    redis, postgres = servers
    runs, kills, chance = count(24, 200), count(4, 1_000_000), random.Random(7)
    file = tmp_path / "started.txt"
    async with AsyncExitStack() as stack:
        ledger = await stack.enter_async_context(hw.open_ledger(postgres, migrate=True))
        protocol = await stack.enter_async_context(hw.connect(redis, lease_s=LEASE_S))
        team = await stack.enter_async_context(members(redis, postgres, file))
        async with hw.Coordinator(None, protocol, ledger=ledger, team=[("worker", ["work"])], lease_s=LEASE_S) as own:
            results = asyncio.gather(
                *(
                    own.execute(hw.TaskRequest(name=f"t{n}", id=f"run-{n}"), plan=random_plan(chance))
                    for n in range(runs)
                )
            )
            while not (await asyncio.wait([results], timeout=1.0))[0]:
                if team.kills.total() < kills:
                    team.kill_one(chance)
            done = await results
        await check(ledger, done)
    started = [line.split() for line in file.read_text().splitlines()]
    once = {(run, name) for run, name, _ in started}
    assert len(once) == runs * SUBTASKS
    # At least once: how often a handler had to start again is what the kills have cost, and must stay small.
    again = len(started) - len(once)
    print(f"{runs} runs, {len(once)} subtasks, {dict(team.kills)} killed, {again} handlers started again")
    assert again <= team.kills["worker"] * 8
    assert team.kills["worker"] >= 1
    assert team.kills["coordinator"] >= 1


async def check(ledger: hw.Ledger, done: list[hw.TaskResult]) -> None:
    """Each subtask's output and rows are there once, and tell what it saw."""
    for result in done:
        assert result.status == "completed", result
        assert len(result.output) == SUBTASKS
        parts = await ledger.list_tasks(TaskFilter(parent_id=result.task_id))
        assert sorted(part.name for part in parts) == sorted(result.output)
        for part in parts:
            assert part.output == {"subtask": part.name, "saw": sorted(part.dependencies)}
            told = [str(entry.status) for entry in await ledger.history(part.id)]
            assert told.count("completed") == 1, told
            assert part.status is TaskStatus.COMPLETED
