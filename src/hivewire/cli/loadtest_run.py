"""The load of a load test: senders with a timetable, workers here or in other processes."""

from __future__ import annotations

import argparse
import asyncio
import heapq
import math
import os
import resource
import signal
import socket
import sys
import tempfile
import time
from asyncio.subprocess import DEVNULL, Process
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final

import msgspec

from hivewire.cli.loadtest_tally import Tally, count_handled, read_handled
from hivewire.cli.loadtest_worker import handler
from hivewire.cli.options import Progress, UsageError, connect_from
from hivewire.cli.supervisor import READY, ended_how, send_signal
from hivewire.errors import BackendError
from hivewire.ids import new_id
from hivewire.message import Message

if TYPE_CHECKING:
    from hivewire.protocol import Protocol

AGENT: Final = "hivewire-loadtest"
_MOST_SENDERS: Final = 16
_MOST_A_BATCH: Final = 500
_SHORTEST_PAUSE_S: Final = 0.001
_POLL_S: Final = 0.1
_SECOND_NS: Final = 1_000_000_000


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """What is to be done."""

    rate: float
    duration_s: float
    workers: int
    processes: int
    keys: int
    size_bytes: int
    work_s: float
    kill: bool
    drain_s: float

    @property
    def total(self) -> int:
        return max(int(self.rate * self.duration_s), 1)


class Counts(msgspec.Struct, kw_only=True):
    """What was seen beside the tally."""

    sent: int = 0
    failed: int = 0
    dead: int = 0
    unfinished: int = 0
    lost: int = 0
    killed: int = 0
    first_error: str = ""
    durability: str = ""
    backend: str = ""
    cpu_s: float = 0.0
    rss_mb: float = 0.0


class Children:
    """The worker processes."""

    def __init__(self, args: argparse.Namespace, plan: Plan, run_id: str, folder: Path) -> None:
        self._args = args
        self._plan = plan
        self._run_id = run_id
        self._folder = folder
        self._running: list[Process] = []
        self._links: list[socket.socket] = []
        self._memory_bytes: dict[int, int] = {}

    async def start(self, how_many: int) -> None:
        """Start so many and wait until they serve."""
        async with asyncio.TaskGroup() as group:
            for _ in range(how_many):
                group.create_task(self._start_one())

    async def _start_one(self) -> None:
        ours, theirs = socket.socketpair()
        number = len(self._links)
        self._links.append(ours)
        share = math.ceil(self._plan.workers / self._plan.processes)
        protocol = ["--protocol", self._args.protocol] if self._args.protocol else []
        out = str(self._folder / f"handled-{number}")
        command = [sys.executable, "-m", "hivewire.cli.loadtest_worker", *protocol, "--agent", AGENT, "--out", out]
        command += ["--run-id", self._run_id, "--concurrency", str(share), "--work", str(self._plan.work_s)]
        with theirs:
            fd = theirs.fileno()
            child = await asyncio.create_subprocess_exec(
                *command, "--link", str(fd), stdin=DEVNULL, pass_fds=[fd], start_new_session=True
            )
        self._running.append(child)
        ours.setblocking(False)
        if await asyncio.get_running_loop().sock_recv(ours, 64) != READY:
            raise UsageError(f"a worker process {ended_how(await child.wait())} before it served")

    async def kill_one(self) -> int:
        """SIGKILL a worker process, start another in its place; returns the dead one's pid."""
        self.sample()
        child = self._running.pop(0)
        send_signal(child, signal.SIGKILL)
        await child.wait()
        await self.start(1)
        return child.pid

    @property
    def pids(self) -> list[int]:
        return [child.pid for child in self._running]

    def files(self) -> list[Path]:
        return sorted(self._folder.glob("handled-*"))

    def sample(self) -> None:
        """Note the largest memory of each, as the kernel tells it."""
        for child in self._running:
            with suppress(OSError, IndexError, ValueError):  # gone, or a system without /proc
                status = Path(f"/proc/{child.pid}/status").read_text()
                self._memory_bytes[child.pid] = int(status.split("VmHWM:")[1].split()[0]) * 1024

    @property
    def memory_bytes(self) -> int:
        return sum(self._memory_bytes.values())

    async def stop(self) -> None:
        self.sample()
        for child in self._running:
            send_signal(child, signal.SIGTERM)
        for child in self._running:
            code = await child.wait()
            if code:
                sys.stderr.write(f"hivewire loadtest: worker process {child.pid} {ended_how(code)}\n")
        for link in self._links:
            link.close()


class LoadTest:
    """One run. After `run`, `tally` and `counts` hold all that was found."""

    def __init__(self, args: argparse.Namespace, plan: Plan) -> None:
        self._args = args
        self._plan = plan
        self._run_id = new_id()
        self._padding = "x" * plan.size_bytes
        self._progress = Progress()
        self._sending_done = asyncio.Event()
        self.counts = Counts()
        self.tally = Tally(plan.keys, 0)
        self.start_ns = 0

    async def run(self) -> None:
        before_s = _cpu_s()
        with tempfile.TemporaryDirectory(prefix="hivewire-loadtest-") as folder:
            children = Children(self._args, self._plan, self._run_id, Path(folder))
            async with connect_from(self._args) as protocol:
                health = await protocol.health()
                self.counts.durability, self.counts.backend = health.durability, health.backend
                try:
                    await self._load(protocol, children)
                finally:
                    await children.stop()
                self.tally.handle_all(heapq.merge(*map(read_handled, children.files())))
                await self._look_for_the_missing(protocol)
        self._progress.clear()
        own_bytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
        self.counts.rss_mb = round((own_bytes + children.memory_bytes) / 2**20, 1)
        self.counts.cpu_s = round(_cpu_s() - before_s, 2)

    async def _load(self, protocol: Protocol, children: Children) -> None:
        if self._plan.processes:
            await children.start(self._plan.processes)
            sys.stderr.write(f"worker processes: {' '.join(map(str, children.pids))}\n")
        self.start_ns = time.monotonic_ns()
        self.tally = Tally(self._plan.keys, self.start_ns)
        stop = asyncio.get_running_loop().create_future()
        async with asyncio.TaskGroup() as group:
            if not self._plan.processes:
                handle = handler(self._run_id, self._plan.work_s, self.tally.handle)
                group.create_task(protocol.serve(AGENT, handle, concurrency=self._plan.workers, stop=stop))
            reporter = group.create_task(self._report(children))
            if self._plan.kill:
                group.create_task(self._kill_halfway(children))
            await self._send_all(protocol)
            self._sending_done.set()
            await self._drain(protocol)
            reporter.cancel()
            stop.set_result(None)

    async def _send_all(self, protocol: Protocol) -> None:
        senders = max(n for n in range(1, _MOST_SENDERS + 1) if self._plan.keys % n == 0)
        async with asyncio.TaskGroup() as group:
            for first in range(senders):
                group.create_task(self._send_each(protocol, first, senders))

    async def _send_each(self, protocol: Protocol, first: int, step: int) -> None:
        """Send messages number first, first + step, …, each no sooner than it is due.

        One sender has the same keys always and waits for each confirmation, so the order within a key
        is defined. While it waits, more falls due: that goes with the next batch, and its latency counts
        from when it was due, not from when it could be sent.
        """
        index = first
        end_ns = self.start_ns + int(self._plan.duration_s * _SECOND_NS)
        while index < self._plan.total:
            now_ns = time.monotonic_ns()
            if now_ns > end_ns + _SECOND_NS:
                return  # the store is slower than the rate: the rest is never sent, and the report says so
            ahead_s = (self._due_ns(index) - now_ns) / _SECOND_NS
            if ahead_s > 0:
                await asyncio.sleep(max(ahead_s, _SHORTEST_PAUSE_S))
                continue
            last = min(int((now_ns - self.start_ns) * self._plan.rate / _SECOND_NS), self._plan.total - 1)
            batch = range(index, last + 1, step)[:_MOST_A_BATCH]
            index = batch[-1] + step
            await self._send(protocol, batch)

    def _due_ns(self, index: int) -> int:
        return self.start_ns + int(index * _SECOND_NS / self._plan.rate)

    async def _send(self, protocol: Protocol, batch: range) -> None:
        self.counts.sent += len(batch)
        try:
            await protocol.send_many([self._message(index) for index in batch])
        except BackendError as error:
            # Whether some of them are stored is not known: none counts as confirmed.
            self.counts.failed += len(batch)
            self.counts.first_error = self.counts.first_error or str(error)
            return
        for index in batch:
            number, key = divmod(index, self._plan.keys)
            self.tally.confirm(key, number)

    def _message(self, index: int) -> Message:
        number, key = divmod(index, self._plan.keys)
        content = {"run": self._run_id, "key": key, "number": number, "intended_ns": self._due_ns(index)}
        if self._padding:
            content["padding"] = self._padding
        return Message(type="task", sender="loadtest", to=AGENT, key=f"key-{key}", content=content)

    async def _kill_halfway(self, children: Children) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(self._plan.duration_s / 2):  # `wait_for` of Python 3.11 may swallow a cancel
                await self._sending_done.wait()
        pid = await children.kill_one()
        self.counts.killed += 1
        self._progress.clear()
        sys.stderr.write(f"killed worker process {pid} with SIGKILL; another took its place\n")

    async def _drain(self, protocol: Protocol) -> None:
        """Wait until the queue is empty, or stands still for the drain time."""
        left = await _left(protocol)
        moved_at = time.monotonic()
        while left and time.monotonic() - moved_at < self._plan.drain_s:
            await asyncio.sleep(_POLL_S)
            now = await _left(protocol)
            if now != left:
                left, moved_at = now, time.monotonic()
        self.counts.unfinished = left

    async def _look_for_the_missing(self, protocol: Protocol) -> None:
        dead = await self._dead(protocol)
        missing = len(set(self.tally.missing()) - dead)
        left = await _left(protocol)  # what was handed back when the workers stopped is in the queue again
        self.counts.dead = len(dead)
        self.counts.unfinished = min(missing, left)
        self.counts.lost = missing - self.counts.unfinished

    async def _dead(self, protocol: Protocol) -> set[tuple[int, int]]:
        """(key, number) of this run's messages among the dead letters."""
        found: set[tuple[int, int]] = set()
        after: str | None = None
        while page := await protocol.dead_letters(AGENT, limit=_MOST_A_BATCH, after=after):
            contents = [letter.message.content for letter in page if letter.message is not None]
            mine = [c for c in contents if isinstance(c, dict) and c.get("run") == self._run_id]
            found.update((c["key"], c["number"]) for c in mine)
            after = page[-1].cursor
        return found

    async def _report(self, children: Children) -> None:
        while True:
            await asyncio.sleep(1)
            children.sample()
            handled = self.tally.handled + sum(map(count_handled, children.files()))
            passed_s = (time.monotonic_ns() - self.start_ns) / _SECOND_NS
            self._progress.show(f"{passed_s:.0f} s: {self.counts.sent} sent, {handled} handled")


async def _left(protocol: Protocol) -> int:
    depth = await protocol.depth(AGENT)
    return depth.ready + depth.in_flight + depth.scheduled


def _cpu_s() -> float:
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system
