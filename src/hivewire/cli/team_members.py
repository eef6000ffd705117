"""The members of a team at work: processes that are replaced when they die, or, in memory, tasks."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import time
from abc import ABC, abstractmethod
from asyncio.subprocess import DEVNULL, Process
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final

from hivewire.cli.options import UsageError
from hivewire.cli.supervisor import READY, ended_how, send_signal
from hivewire.cli.team_process import EXIT_USAGE
from hivewire.rules.restart import CrashLoop

if TYPE_CHECKING:
    from hivewire.coordination.worker import Worker
    from hivewire.protocol import Protocol

log = logging.getLogger(__name__)

_MAX_CRASHES: Final = 5
"""In a row, without having served: then the run is given up, unless another member serves."""
_AFTER_GRACE_S: Final = 6.0


class Members(ABC):
    """The members that serve a team's workers. Each has a name, by which it tells what it starts."""

    kind: str

    def __init__(self, count: int, tell: Callable[[str], None]) -> None:
        self.count = count
        self._tell = tell
        self._stopping = asyncio.Event()

    @abstractmethod
    async def run(self) -> None:
        """Keep `count` members at work until `stop`. Raises `UsageError` when they cannot start."""

    @abstractmethod
    def kill(self, name: str) -> bool:
        """End a member at once, without a chance to give anything back. False: it is gone already."""

    @abstractmethod
    def stop(self) -> None:
        """Let what runs finish within the grace time, then end. A second call ends at once."""


class ProcessMembers(Members):
    """Each member is a process of its own; its name is the process id. What they print goes to `output`."""

    kind = "process"

    def __init__(
        self,
        count: int,
        tell: Callable[[str], None],
        *,
        command: Callable[[int], Sequence[str]],
        output: Path,
        grace_s: float,
    ) -> None:
        super().__init__(count, tell)
        self._command = command
        self._output = output
        self._grace_s = grace_s
        self._children: dict[str, Process] = {}
        self._serving: set[str] = set()
        self._killed: set[str] = set()

    async def run(self) -> None:
        async with asyncio.TaskGroup() as group:
            for _ in range(self.count):
                group.create_task(self._keep())

    def kill(self, name: str) -> bool:
        child = self._children.get(name)
        if child is None or child.returncode is not None:
            return False
        self._killed.add(name)
        send_signal(child, signal.SIGKILL)
        return True

    def stop(self) -> None:
        if self._stopping.is_set():
            self._signal_all(signal.SIGKILL)
            return
        self._stopping.set()
        self._signal_all(signal.SIGTERM)
        asyncio.get_running_loop().call_later(self._grace_s + _AFTER_GRACE_S, self._signal_all, signal.SIGKILL)

    def _signal_all(self, number: signal.Signals) -> None:
        for child in self._children.values():
            send_signal(child, number)

    async def _keep(self) -> None:
        rule = CrashLoop()
        while not self._stopping.is_set():
            started = time.monotonic()
            child, is_ready = await self._one_life()
            name, code = str(child.pid), await child.wait()
            if self._stopping.is_set():
                return
            if name in self._killed:
                self._tell(f"worker process {name} is dead; starting another in its place")
                continue
            pause_s = rule.pause_s(time.monotonic() - started)
            is_hopeless = code == EXIT_USAGE or rule.crashes >= _MAX_CRASHES
            if is_hopeless and not is_ready and not self._serving:
                raise UsageError(f"the worker processes cannot start: {self._last_words()} (see {self._output})")
            self._tell(f"worker process {name} {ended_how(code)}; starting another in {pause_s:g} s")
            with suppress(TimeoutError):
                async with asyncio.timeout(pause_s):  # `wait_for` of Python 3.11 may swallow a cancel
                    await self._stopping.wait()

    async def _one_life(self) -> tuple[Process, bool]:
        """Start a child and wait until it has ended. True: it has served."""
        ours, theirs = socket.socketpair()
        with theirs, self._output.open("ab") as output:
            child = await asyncio.create_subprocess_exec(
                *self._command(theirs.fileno()),
                stdin=DEVNULL,
                stdout=output,
                stderr=output,
                pass_fds=[theirs.fileno()],
                process_group=0,  # so that Ctrl-C on the terminal reaches it once: through us
            )
        name = str(child.pid)
        self._children[name] = child
        if self._stopping.is_set():  # asked to while it was being started
            child.send_signal(signal.SIGTERM)
        reader, writer = await asyncio.open_connection(sock=ours)
        try:
            is_ready = await reader.readline() == READY
            if is_ready:
                self._serving.add(name)
            await child.wait()
        finally:
            writer.close()
            self._serving.discard(name)
            if child.returncode is None:  # cancelled: nobody will look after it any more
                child.kill()
                await child.wait()
            del self._children[name]
        return child, is_ready

    def _last_words(self) -> str:
        with self._output.open("rb") as output:
            output.seek(max(0, os.path.getsize(self._output) - 4096))
            lines = output.read().decode("utf-8", "replace").strip().splitlines()
        return lines[-1].strip() if lines else "they end without a word"


class TaskMembers(Members):
    """Each member is a protocol of its own in this process: for `memory://`, which nobody else can reach."""

    kind = "member"

    def __init__(
        self,
        count: int,
        tell: Callable[[str], None],
        *,
        workers: Sequence[Worker],
        connect: Callable[[str], Protocol],
        grace_s: float,
    ) -> None:
        super().__init__(count, tell)
        self._workers = workers
        self._connect = connect
        self._grace_s = grace_s
        self._born = 0
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._engines: dict[str, Protocol] = {}

    async def run(self) -> None:
        async with asyncio.TaskGroup() as group:
            for _ in range(self.count):
                group.create_task(self._keep())

    def kill(self, name: str) -> bool:
        from hivewire.engine.protocol import Engine

        engine = self._engines.pop(name, None)
        if not isinstance(engine, Engine):
            return False
        engine.abandon()
        self._tasks[name].cancel()
        return True

    def stop(self) -> None:
        if self._stopping.is_set():
            for task in self._tasks.values():
                task.cancel()
        self._stopping.set()

    async def _keep(self) -> None:
        while not self._stopping.is_set():
            self._born += 1
            name = f"member-{self._born}"
            async with asyncio.TaskGroup() as group:
                task = self._tasks[name] = group.create_task(self._one_life(name))
                await asyncio.wait([task])
            if not self._stopping.is_set():
                self._tell(f"{name} is dead; starting another in its place")

    async def _one_life(self, name: str) -> None:
        engine = self._engines[name] = self._connect(name)
        async with engine, asyncio.TaskGroup() as group:
            for worker in self._workers:
                group.create_task(worker.serve(engine, stop=self._stopping.wait(), drain_s=self._grace_s))
