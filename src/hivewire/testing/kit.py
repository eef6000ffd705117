"""Running your own workers in a test: served in the background, drained, looked at."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any
from uuid import uuid4

from hivewire.coordination.worker import Worker
from hivewire.engine.protocol import Engine
from hivewire.errors import ConnectionLost
from hivewire.factory import connect
from hivewire.message import Message
from hivewire.protocol import DeadLetter, Protocol
from hivewire.settings import Settings, load
from hivewire.testing.faulty import FaultyMemory, Trouble

QUICK = {"retry_first_s": 0.01, "retry_most_s": 0.05, "lease_s": 1.0}
"""Settings of tests: a retry comes at once, a lease ends soon."""


class Kit:
    """A protocol with workers that handle in the background."""

    def __init__(self, protocol: Protocol) -> None:
        self.protocol = protocol

    async def drained(self, *agents: str, within_s: float = 30.0) -> None:
        """Until nothing waits, runs or is delayed, for these agents or for all. Raises `TimeoutError` with what
        is left."""
        left: dict[str, int] = {}
        try:
            async with asyncio.timeout(within_s):
                while left := await self._left(agents):  # noqa: ASYNC110  # a store tells nobody that it is empty
                    await asyncio.sleep(0.01)
        except TimeoutError:
            raise TimeoutError(f"not drained within {within_s} s: {left}") from None

    async def _left(self, agents: tuple[str, ...]) -> dict[str, int]:
        left = {}
        for agent in agents or await self.protocol.agents():
            depth = await self.protocol.depth(agent)
            held = depth.ready + depth.in_flight + depth.scheduled
            if held:
                left[agent] = held
        return left

    async def dead(self, agent: str | None = None) -> list[DeadLetter]:
        """Dead letters, the oldest first."""
        return await self.protocol.dead_letters(agent, limit=1_000)

    async def received(self, agent: str) -> list[Message]:
        """All that waits for an agent that no worker of the test serves; taken and acknowledged. A store that is away
        for a moment is asked again."""
        found: list[Message] = []
        while True:
            try:
                batch = await self.protocol.receive(agent, limit=100, wait_s=0)
            except ConnectionLost:
                await asyncio.sleep(0.01)
                continue
            if not batch and not (await self.protocol.depth(agent)).ready:
                return found  # an empty batch alone may have met duplicates
            for delivery in batch:
                await delivery.ack()
                found.append(delivery.message)


@asynccontextmanager
async def running(*workers: Worker, protocol: Protocol | None = None) -> AsyncIterator[Kit]:
    """Serve the workers until the block ends; on a memory store of their own, unless a protocol is given. An error of
    `serve` is raised here, a handler's is not: see `Kit.dead`."""
    own = protocol is None
    used = protocol if protocol is not None else memory()
    try:
        jobs = [asyncio.create_task(worker.serve(used), name=worker.name) for worker in workers]
        try:
            yield Kit(used)
            for job in jobs:
                if job.done():
                    job.result()
        finally:
            for job in jobs:
                job.cancel()
            for job in jobs:
                with suppress(asyncio.CancelledError):
                    await job
    finally:
        if own:
            await used.close(0)


def memory(**settings: Any) -> Protocol:
    """A protocol on a memory store of its own, with `QUICK` settings."""
    return connect(f"memory://{uuid4().hex}", **{**QUICK, **settings})


def faulty(seed: int, *, rate: float = 0.2, **settings: Any) -> tuple[Protocol, Trouble]:
    """A protocol on a memory store that misbehaves by the seed, and its trouble, to count and to heal it."""
    found: Settings = load(f"memory://{uuid4().hex}", **{**QUICK, **settings})
    trouble = Trouble(seed, rate)
    return Engine(found, FaultyMemory(found, trouble)), trouble
