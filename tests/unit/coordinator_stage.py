"""A protocol, a ledger and workers on virtual time, for tests of coordinators."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any
from uuid import uuid4

import hivewire as hw
from hivewire.coordination.coordinator import Coordinator
from hivewire.coordination.ledger import Ledger
from hivewire.coordination.ledger.run_log import LogEntry
from hivewire.coordination.ledger.sqlite import MemoryStore
from hivewire.coordination.ledger.store import Script
from hivewire.coordination.ledger.stored import StoredLedger
from hivewire.testing.scripted_model import Answer, ScriptedModel
from hivewire.testing.virtual_loop import EPOCH

Handler = Callable[[hw.Message, hw.Context], Any]


def sub(name: str, *after: str, assigned_to: str = "work", **fields: Any) -> dict[str, Any]:
    return {"name": name, "assigned_to": assigned_to, "dependencies": list(after), **fields}


def plan(*subtasks: dict[str, Any]) -> dict[str, Any]:
    return {"subtasks": list(subtasks)}


def now() -> float:
    return EPOCH + asyncio.get_running_loop().time()


def elapsed(since: float) -> float:
    return now() - since


class Stage:
    """A protocol, a ledger and workers; coordinators are added, and die, as a test likes."""

    def __init__(self, stack: AsyncExitStack, protocol: hw.Protocol, store: MemoryStore) -> None:
        self._stack = stack
        self.protocol = protocol
        self.store = store
        self.ledger: Ledger = StoredLedger(store, migrate=True)
        self.calls: list[str] = []
        self.inputs: dict[str, dict[str, Any]] = {}
        self.workers: list[hw.Worker] = []

    def worker(self, name: str, *capabilities: str, handler: Handler | None = None, concurrency: int = 16) -> hw.Worker:
        made = hw.Worker(name, capabilities=capabilities, concurrency=concurrency, mode="competing")

        async def handle(task: hw.Message, ctx: hw.Context) -> Any:
            self.calls.append(task.content["subtask"])
            self.inputs[task.content["subtask"]] = task.content
            return await handler(task, ctx) if handler is not None else {"from": task.content["subtask"]}

        made.on("task", retry=hw.Retry(max_attempts=2, first_s=0.1))(handle)
        self.workers.append(made)
        serving = asyncio.create_task(made.serve(self.protocol))

        async def end() -> None:
            serving.cancel()
            await asyncio.wait([serving])

        self._stack.push_async_callback(end)
        return made

    async def coordinator(self, *answers: Answer, **how: Any) -> Coordinator:
        model = ScriptedModel(list(answers)) if answers else None
        how.setdefault("team", self.workers)
        how.setdefault("ledger", self.ledger)
        made = Coordinator(model, self.protocol, clock=now, **how)
        return await self._stack.enter_async_context(made)


@asynccontextmanager
async def stage() -> AsyncIterator[Stage]:
    async with AsyncExitStack() as stack:
        protocol = await stack.enter_async_context(hw.connect(f"memory://{uuid4().hex}", lease_s=2, retry_first_s=0.05))
        made = Stage(stack, protocol, MemoryStore(clock=now))
        await stack.enter_async_context(made.ledger)
        yield made


async def slow(task: hw.Message, ctx: hw.Context) -> Any:
    await asyncio.sleep(0.1)
    return {"n": 1}


def failing(*names: str) -> Handler:
    async def handle(task: hw.Message, ctx: hw.Context) -> Any:
        if task.content["subtask"] in names:
            raise hw.Reject("no ink")
        return {"from": task.content["subtask"]}

    return handle


class CountingStore(MemoryStore):
    """Counts how often it is read."""

    reads = 0

    async def read(self, make: Callable[[], Script[Any]]) -> Any:
        self.reads += 1
        return await super().read(make)


async def told(coordinator: Coordinator, run: str, after: int = 0) -> list[LogEntry]:
    return [entry async for entry in coordinator.events(run, after=after)]
