"""A run is cancelled while real worker processes have its subtasks: on the loop, in threads, in processes, frozen."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager
from functools import partial
from pathlib import Path
from typing import NamedTuple

import pytest

import hivewire as hw
from hivewire.testing.conformance.waiting import patience, until, until_true
from tests.faults.cancel_member import LEASE_S, RELEASED

KINDS = ("loop", "thread", "process")
EACH = 8
TEAM = [(kind, [kind]) for kind in KINDS]
PLAN = {"subtasks": [{"name": f"{kind}{n}", "assigned_to": kind} for kind in KINDS for n in range(EACH)]}


class Line(NamedTuple):
    """What a handler has noted."""

    at: float
    what: str
    subtask: str
    pid: int


@pytest.fixture(params=["sqlite", "redis and postgres"])
def stores(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[str, str]:
    """The URLs of a protocol and of a ledger."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/queues.db", f"sqlite:///{tmp_path}/ledger.db"
    urls: tuple[str, str] = request.getfixturevalue("servers")
    return urls


class Members:
    """Worker processes and what they noted."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self.processes: list[subprocess.Popen[bytes]] = []

    async def start(self, protocol: str) -> None:
        command = [sys.executable, "-m", "tests.faults.cancel_member", protocol, str(self._file)]
        process = await asyncio.to_thread(subprocess.Popen, command, stdout=subprocess.PIPE)
        self.processes.append(process)
        assert process.stdout is not None
        assert await asyncio.to_thread(process.stdout.readline) == b"ready\n"

    def release(self) -> None:
        """Let the handlers in threads end."""
        Path(f"{self._file}{RELEASED}").touch()

    def lines(self) -> list[Line]:
        words = [line.split() for line in self._file.read_text().splitlines()]
        return [Line(float(at), what, subtask, int(pid)) for at, what, _, subtask, pid in words]

    def begun(self) -> set[str]:
        return {line.subtask for line in self.lines() if line.what == "began"}

    def pids(self) -> set[int]:
        """Of the processes of handlers."""
        return {line.pid for line in self.lines() if line.subtask.startswith("process")}

    def end(self) -> None:
        with ExitStack() as stack:
            for process in self.processes:
                assert process.stdout is not None
                stack.callback(process.stdout.close)
                stack.callback(process.wait)
                process.kill()


@asynccontextmanager
async def members(protocol: str, file: Path, wanted: int) -> AsyncIterator[Members]:
    file.touch()
    made = Members(file)
    try:
        await asyncio.gather(*(made.start(protocol) for _ in range(wanted)))
        yield made
    finally:
        made.end()


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


async def is_empty(protocol: hw.Protocol, agent: str) -> bool:
    depth = await protocol.depth(agent)
    return depth.ready + depth.in_flight == 0


@pytest.mark.processes
@pytest.mark.slow
@pytest.mark.timeout(180)
async def test_nothing_begins_after_a_cancel_and_what_runs_ends_within_a_second(
    stores: tuple[str, str], tmp_path: Path
) -> None:
    protocol_url, ledger_url = stores
    async with (
        hw.open_ledger(ledger_url, migrate=True) as ledger,
        hw.connect(protocol_url, lease_s=LEASE_S) as protocol,
        members(protocol_url, tmp_path / "noted.txt", 2) as team,
        hw.Coordinator(None, protocol, ledger=ledger, team=TEAM, lease_s=LEASE_S) as coordinator,
    ):
        run = await coordinator.start(hw.TaskRequest(name="long"), plan=PLAN)
        await until(lambda: len(team.begun()) >= 4 * len(KINDS), "two of each kind in each process", 60)
        called_at = time.monotonic()
        result = await coordinator.cancel(run, "enough")
        returned_at = time.monotonic()
        assert set(result.subtasks.values()) == {"cancelled"}

        await until(lambda: not any(map(is_alive, team.pids())), "handlers' processes have ended")
        running = {name for name in team.begun() if name.startswith("loop")}
        await until(lambda: {x.subtask for x in team.lines() if x.what == "cancelled"} == running, "all are cancelled")
        assert max(x.at for x in team.lines() if x.what == "cancelled") <= called_at + 1 * patience
        team.release()
        threads = {name for name in team.begun() if name.startswith("thread")}
        await until(lambda: {x.subtask for x in team.lines() if x.what == "ended"} == threads, "threads answer, late")
        for kind in KINDS:  # what waited is taken from the queue, and not begun
            await until_true(partial(is_empty, protocol, kind), f"the queue of {kind} is empty")
            assert await protocol.dead_letters(kind) == []
        late = [x for x in team.lines() if x.what == "began" and x.at > returned_at]
        assert not late, f"{late} after {returned_at}"
        state = await coordinator.state(run)
        assert {row.status for row in state.rows.values()} == {"cancelled"}
        assert all(row.output is None for row in state.rows.values()), "the late result of a thread is refused"


@pytest.mark.processes
@pytest.mark.slow
@pytest.mark.timeout(180)
async def test_a_process_that_was_frozen_before_the_cancel_begins_nothing_when_it_wakes(
    servers: tuple[str, str], tmp_path: Path
) -> None:
    """Not on SQLite, where a process that is frozen inside a write holds the file: nobody could cancel."""
    protocol_url, ledger_url = servers
    async with (
        hw.open_ledger(ledger_url, migrate=True) as ledger,
        hw.connect(protocol_url, lease_s=LEASE_S) as protocol,
        members(protocol_url, tmp_path / "noted.txt", 1) as team,
        hw.Coordinator(None, protocol, ledger=ledger, team=TEAM, lease_s=LEASE_S) as coordinator,
    ):
        run = await coordinator.start(hw.TaskRequest(name="long"), plan=PLAN)
        await until(lambda: "loop0" in team.begun() or "loop1" in team.begun(), "it works", 60)
        frozen = team.processes[0].pid
        os.kill(frozen, signal.SIGSTOP)
        try:
            await coordinator.cancel(run)
        finally:
            returned_at = time.monotonic()
            os.kill(frozen, signal.SIGCONT)
        team.release()
        for kind in KINDS:
            await until_true(partial(is_empty, protocol, kind), f"the queue of {kind} is empty", 60)
        assert [x for x in team.lines() if x.what == "began" and x.at > returned_at] == []
        await until(lambda: not any(map(is_alive, team.pids())), "handlers' processes have ended")
