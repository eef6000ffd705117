"""CPU-bound handlers in processes: results, failures, deaths, cancels, and nothing left behind."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from math import inf
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest

import hivewire as hw
from hivewire.coordination import processes
from hivewire.coordination.pipes import Pipe
from hivewire.coordination.processes import _Child
from hivewire.testing.conformance.waiting import eventually, until
from tests.system import process_handlers

pytestmark = pytest.mark.processes


@asynccontextmanager
async def _served(
    concurrency: int = 2, timeout_s: float | None = None
) -> AsyncIterator[tuple[hw.Protocol, asyncio.Event]]:
    worker = hw.Worker("cpu", concurrency=concurrency, mode="competing")
    worker.on("task", process=True, timeout_s=timeout_s)(process_handlers.work)
    async with hw.connect("memory://", max_attempts=3, retry_first_s=0.01, retry_most_s=0.02) as protocol:
        stop = asyncio.Event()
        job = asyncio.create_task(worker.serve(protocol, asyncio.ensure_future(stop.wait()), drain_s=0.5))
        try:
            yield protocol, stop
        finally:
            stop.set()
            await job


def _task(**content: Any) -> hw.Message:
    return hw.Message(type="task", sender="me", to="cpu", content=content)


async def _ask(protocol: hw.Protocol, **content: Any) -> Any:
    return (await protocol.request(_task(**content), timeout_s=20)).content


async def _dead(protocol: hw.Protocol, **content: Any) -> hw.DeadLetter:
    message = _task(**content)
    await protocol.send(message)
    async with asyncio.timeout(20):
        while True:
            for letter in await protocol.dead_letters("cpu"):
                if letter.id == message.id:
                    return letter
            await asyncio.sleep(0.01)


async def _gone(pid: int) -> None:
    await until(lambda: not Path(f"/proc/{pid}").exists(), f"process {pid} ends", 10)


async def test_it_runs_elsewhere_in_processes_that_are_kept() -> None:
    async with _served() as (protocol, _):
        pids = [await _ask(protocol, do="pid") for _ in range(4)]
        assert os.getpid() not in pids
        assert len(set(pids)) == 1
        assert await _ask(protocol, do="large", n=900_000) == "x" * 900_000
    await _gone(pids[0])


async def test_two_at_a_time_use_two_processes(tmp_path: Path) -> None:
    note = tmp_path / "pids"
    async with _served(concurrency=2) as (protocol, _):
        await asyncio.gather(*(_ask(protocol, do="burn", s=0.3, note=str(note)) for _ in range(4)))
    pids = note.read_text().split()
    assert len(pids) == 4
    assert len(set(pids)) == 2


@pytest.mark.parametrize(
    ("how", "says"),
    [
        ("die", "signal 9 (SIGKILL)"),
        ("exit", "exit code 7"),
        ("end", f"signal {signal.SIGRTMIN + 6}"),  # it has no name
    ],
)
async def test_a_process_that_dies_is_a_failed_attempt(how: str, says: str) -> None:
    async with _served() as (protocol, _):
        assert await _ask(protocol, do=how, last=1) == 2
        letter = await _dead(protocol, do=how, last=9)
        assert (letter.reason, letter.attempts) == ("max_attempts", 3)
        assert says in letter.error
        assert await _ask(protocol, do="fine") == 1


def _is_dead(pid: int) -> bool:
    """With all its threads, and nobody has asked yet."""
    tasks = list(Path(f"/proc/{pid}/task").iterdir())
    return len(tasks) == 1 and "\nState:\tZ" in (tasks[0] / "status").read_text()


async def test_the_death_of_an_idle_process_fails_nothing() -> None:
    async with _served(concurrency=1) as (protocol, _):
        pid = await _ask(protocol, do="pid")
        os.kill(pid, signal.SIGKILL)
        await until(lambda: _is_dead(pid), "it is dead", 10)
        assert await _ask(protocol, do="fine") == 1


async def test_a_death_is_seen_though_what_it_forked_lives_on() -> None:
    """The child of a process holds its pipes open, too."""
    async with _served(concurrency=1) as (protocol, _):
        assert await _ask(protocol, do="fork", s=60, last=1) == 2


async def test_a_death_in_the_middle_of_an_answer_is_seen_though_what_it_forked_lives_on() -> None:
    async with _served(concurrency=1) as (protocol, _):
        assert await _ask(protocol, do="half", n=3_000_000, s=60, last=1) == 2


def test_a_message_to_a_dead_process_does_not_wait_for_ever() -> None:
    """Somebody else holds the other end open, and reads nothing."""
    ours, theirs = multiprocessing.Pipe()
    pipe, lives = Pipe(ours, lambda: False), Pipe(theirs, lambda: True)
    with ThreadPoolExecutor(1) as threads:
        with pytest.raises(EOFError):
            threads.submit(pipe.send, b"x" * 5_000_000).result(30)
        lives.send(b"last words")
        assert threads.submit(pipe.receive).result(30) == b"last words"
        with pytest.raises(EOFError):
            threads.submit(pipe.receive).result(30)
    pipe.close()
    lives.close()


def test_who_kills_does_not_wait_for_what_was_forked(tmp_path: Path) -> None:
    """It is the event loop that kills."""
    child, note = _Child("forking"), tmp_path / "note"
    message = _task(do="fork and wait", s=40, note=str(note))
    with ThreadPoolExecutor(1) as threads, patch.object(processes, "_END_S", 60.0):
        asking = threads.submit(child.ask, (process_handlers.work, message, 1, inf))
        while not (note.exists() and note.read_text().count("here") == 2):
            assert not asking.done()
            time.sleep(0.01)
        began = time.monotonic()
        child.kill()
        assert time.monotonic() - began < 20
        with pytest.raises(processes.ProcessDied, match="SIGKILL"):
            asking.result(30)


async def test_what_a_handler_forks_gives_no_answer() -> None:
    """Its answer would be taken for that to the next message."""
    async with _served(concurrency=1) as (protocol, _):
        for _ in range(3):
            assert await _ask(protocol, do="both") == "parent"
            assert await _ask(protocol, do="large", n=3) == "xxx"


async def test_a_death_fails_no_other(tmp_path: Path) -> None:
    async with _served(concurrency=3) as (protocol, _):
        calm = [asyncio.create_task(_ask(protocol, do="burn", s=0.5, note=str(tmp_path / "pids"))) for _ in range(2)]
        await _dead(protocol, do="die", last=9)
        assert await asyncio.gather(*calm) == [1, 1]


async def test_what_it_raises_arrives_with_its_traceback() -> None:
    async with _served() as (protocol, _):
        letter = await _dead(protocol, do="raise")
        assert "ValueError: attempt 3" in letter.error
        assert "in work" in letter.error
        assert "Odd: odd 1 2" in (await _dead(protocol, do="odd")).error
        rejected = await _dead(protocol, do="reject")
        assert (rejected.reason, rejected.error, rejected.attempts) == ("rejected", "not mine", 1)
        assert await _ask(protocol, do="retry") == 2


@pytest.mark.parametrize(
    ("result", "says"), [("unsendable", "Can't pickle local object"), ("unreadable", "EOFError: not to be read")]
)
async def test_a_result_that_cannot_be_pickled_is_not_worked_for_again(result: str, says: str) -> None:
    async with _served() as (protocol, _):
        letter = await _dead(protocol, do=result)
        assert (letter.reason, letter.attempts) == ("rejected", 1)
        assert "the handler's result cannot be pickled" in letter.error
        assert says in letter.error


async def test_a_handler_that_takes_too_long_ends_with_its_process(tmp_path: Path) -> None:
    note = tmp_path / "pids"
    async with _served(concurrency=1, timeout_s=2.0) as (protocol, _):
        letter = await _dead(protocol, do="burn", s=60, note=str(note))
        assert "ran longer than 2.0 s" in letter.error
        assert await _ask(protocol, do="fine") == 1
        pids = [int(pid) for pid in note.read_text().split()]
        assert len(pids) == 3
        for pid in pids:
            await _gone(pid)


async def test_a_stop_ends_what_runs_and_gives_it_back(tmp_path: Path) -> None:
    note = tmp_path / "pids"
    async with _served(concurrency=1) as (protocol, stop):
        await protocol.send(_task(do="burn", s=60, note=str(note)))
        await until(lambda: note.exists() and bool(note.read_text()), "it runs", 20)
        stop.set()

        async def ready() -> int:
            return (await protocol.depth("cpu")).ready

        await eventually(ready, 1, 20)
        await _gone(int(note.read_text()))


def test_what_cannot_run_in_a_process_is_refused() -> None:
    worker = hw.Worker("cpu")
    with pytest.raises(hw.SettingsError, match="plain function"):
        worker.on("task", process=True)(process_handlers.coroutine)


async def test_a_function_without_a_name_is_refused_when_it_is_served() -> None:
    worker = hw.Worker("cpu")
    worker.on("task", process=True)(lambda message, ctx: None)
    async with hw.connect("memory://") as protocol:
        with pytest.raises(hw.SettingsError, match="top of a module"):
            await worker.serve(protocol)


class Slow:
    """A pipe whose reader has read and not yet come back from it."""

    def __init__(self, pipe: Pipe) -> None:
        self.pipe = pipe
        self.has_read = threading.Event()
        self.may_return = threading.Event()

    def send(self, message: bytes) -> None:
        self.pipe.send(message)

    def receive(self) -> bytes:
        try:
            return self.pipe.receive()
        finally:
            self.has_read.set()
            assert self.may_return.wait(30)

    def close(self) -> None:
        self.pipe.close()


def test_a_pipe_is_closed_by_whoever_uses_it_last() -> None:
    """Closed under a thread that reads, its number could be another child's by then, whose answer would be taken."""
    child = _Child("closing")
    with ThreadPoolExecutor(1) as threads:
        message = hw.Message(type="task", sender="me", to="busy", content={"do": "pid"})
        assert threads.submit(child.ask, (process_handlers.work, message, 1, inf)).result(60)[0] == "result"
        assert isinstance(child._pipe, Pipe)
        slow = Slow(child._pipe)
        child._pipe = slow  # type: ignore[assignment]  # all that is used of it
        asking = threads.submit(child.ask, (process_handlers.work, message, 1, inf))
        assert slow.has_read.wait(60)
        child.kill()
        assert not slow.pipe.closed
        slow.may_return.set()
        asking.result(30)
    assert slow.pipe.closed
