"""Processes of a team that die or freeze: workers leave the registry, coordinators are taken over and refused."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

import hivewire as hw
from hivewire.coordination.ledger import TaskFilter
from hivewire.coordination.team import BEAT_S
from hivewire.testing.conformance.waiting import patience, until, until_true

LEASE_S = 2.0
PROGRAM = """
import asyncio
import hivewire as hw

bees = hw.Worker("bees", capabilities=["honey"], role="specialist", concurrency=3)

@bees.on("task")
async def work(task, ctx):
    await asyncio.sleep(0.05)
    return {"subtask": task.content["subtask"]}
"""
COORDINATOR = """
import asyncio, sys
import hivewire as hw
from hivewire.llm import CompletionRequest
from hivewire.testing.scripted_model import ScriptedModel

class Slow(ScriptedModel):
    async def complete(self, request):
        print("asked", flush=True)
        await asyncio.sleep(float(sys.argv[3]))
        return await super().complete(request)

async def main():
    plan = {"subtasks": [{"name": "by " + sys.argv[4], "assigned_to": "honey"}]}
    model, team = Slow([plan] * 9), [("bees", ["honey"])]
    async with hw.open_ledger(sys.argv[2]) as ledger, hw.connect(sys.argv[1], lease_s=2) as protocol:
        async with hw.Coordinator(model, protocol, ledger=ledger, team=team, lease_s=2) as it:
            if sys.argv[4] == "first":
                await it.start(hw.TaskRequest(name="t", id="run"))
            print("ready", flush=True)
            await asyncio.Event().wait()

asyncio.run(main())
"""


@asynccontextmanager
async def program(folder: Path, *arguments: str, says: str) -> AsyncIterator[subprocess.Popen[bytes]]:
    """A process that has printed this line; killed at the end."""
    process = await asyncio.to_thread(
        subprocess.Popen, [sys.executable, *arguments], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, cwd=folder
    )
    assert process.stdout is not None
    try:
        while said := await asyncio.to_thread(process.stdout.readline):
            if says in said.decode():
                break
        assert said, "it ended before it said so"
        yield process
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def worker(folder: Path, protocol: str) -> list[str]:
    (folder / "team_of_bees.py").write_text(PROGRAM)
    return ["-m", "hivewire", "worker", "team_of_bees:bees", "--protocol", protocol]


@pytest.mark.processes
@pytest.mark.timeout(120)
async def test_a_worker_of_the_command_line_is_known_and_a_killed_one_leaves(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/hive.db"
    async with hw.connect(url) as protocol, hw.Coordinator(None, protocol) as coordinator:
        assert coordinator.workers() == []
        async with program(tmp_path, *worker(tmp_path, url), says="serving bees") as first:
            await until(lambda: len(coordinator.workers()) == 1, "it is known", 30)
            (member,) = coordinator.workers()
            assert (member.agent, member.role, member.capabilities) == ("bees", "specialist", ("honey",))
            assert (member.status, member.concurrency) == ("idle", 3)
            plan = {"subtasks": [{"name": "a", "assigned_to": "honey"}]}
            result = await coordinator.execute(hw.TaskRequest(name="t"), plan=plan)
            assert result.output == {"a": {"subtask": "a"}}
            first.kill()
            killed_at = time.monotonic()
            await until(lambda: coordinator.workers() == [], "it is missed", 4 * BEAT_S + 5)
            assert time.monotonic() - killed_at >= 2 * BEAT_S, "one beat that is late is no death"
        async with program(tmp_path, *worker(tmp_path, url), says="serving bees") as second:
            await until(lambda: len(coordinator.workers()) == 1, "the next one is known", 30)
            second.send_signal(signal.SIGTERM)
            await until(lambda: coordinator.workers() == [], "it has said good-bye", BEAT_S * 2)
            assert await asyncio.to_thread(second.wait) == 0


@pytest.mark.processes
@pytest.mark.slow
@pytest.mark.timeout(180)
async def test_a_frozen_coordinator_is_taken_over_and_its_late_writes_are_refused(
    servers: tuple[str, str], tmp_path: Path
) -> None:
    """The first one is frozen while it waits for the model; the second plans and carries the run out; thawed, the first
    brings its plan too late, and nothing changes."""
    protocol_url, ledger_url = servers
    (tmp_path / "coordinate.py").write_text(COORDINATOR)

    def coordinator(name: str, thinks_s: float) -> list[str]:
        return ["coordinate.py", protocol_url, ledger_url, str(thinks_s), name]

    async with hw.open_ledger(ledger_url, migrate=True) as ledger:
        async with (
            program(tmp_path, *worker(tmp_path, protocol_url), says="serving bees"),
            program(tmp_path, *coordinator("first", 8.0), says="asked") as first,
            program(tmp_path, *coordinator("second", 0.0), says="ready") as second,
        ):
            os.kill(first.pid, signal.SIGSTOP)
            frozen_at = time.monotonic()
            assert second.stdout is not None
            assert await asyncio.to_thread(second.stdout.readline) == b"asked\n"
            taken_over_s = time.monotonic() - frozen_at
            await until_true(lambda: is_completed(ledger), "the second one carries it out", 60)
            before = await everything(ledger)
            os.kill(first.pid, signal.SIGCONT)
            await asyncio.sleep(9.0)  # its model has answered by then; nothing tells that it was refused
            assert await everything(ledger) == before
        names = [task.name for task in await ledger.list_tasks(TaskFilter(parent_id="run"))]
        assert names == ["by second"]
        assert taken_over_s <= 2 * LEASE_S * patience


async def is_completed(ledger: hw.Ledger) -> bool:
    return (await ledger.get_task("run")).status is hw.TaskStatus.COMPLETED


async def everything(ledger: hw.Ledger) -> list[object]:
    """The run, its subtasks, and every change of them."""
    tasks = [await ledger.get_task("run"), *await ledger.list_tasks(TaskFilter(parent_id="run"))]
    return [*tasks, *[entry for task in tasks for entry in await ledger.history(task.id)]]
