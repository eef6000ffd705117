"""What an agent costs that waits among thousands in one process. The benchmark holds 10,000 of them to 60 MB; here
counts what Python has allocated, which no other program on the machine changes."""

from __future__ import annotations

import asyncio
import gc
import tracemalloc
from uuid import uuid4

import hivewire as hw
from hivewire.testing.virtual_time import virtual

_MOST_BYTES = 6_100
"""Of each, on virtual time; 5,860 were measured."""


def _agent(number: int) -> hw.Worker:
    worker = hw.Worker(f"agent-{number}")

    @worker.on("task")
    async def handle(message: hw.Message, ctx: hw.Context) -> None: ...

    return worker


async def _allocated(agents: int) -> int:
    """While so many are served, and none of them has anything to do."""
    async with hw.connect(f"memory://{uuid4().hex}") as protocol:
        serving = [asyncio.create_task(_agent(number).serve(protocol)) for number in range(agents)]
        await asyncio.sleep(5)
        gc.collect()
        allocated, _ = tracemalloc.get_traced_memory()
        for task in serving:
            task.cancel()
        await asyncio.wait(serving)
    return allocated


@virtual
async def test_an_idle_agent_holds_no_more_than_it_needs() -> None:
    await _allocated(20)  # what is loaded with the first
    tracemalloc.start()
    try:
        few = await _allocated(100)
        assert (await _allocated(600) - few) / 500 <= _MOST_BYTES
    finally:
        tracemalloc.stop()
