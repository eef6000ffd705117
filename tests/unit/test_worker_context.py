"""What a handler is given beside its message."""

from __future__ import annotations

import asyncio
import gc
import weakref
from uuid import uuid4

import hivewire as hw


async def _a_worker_that_keeps_its_context() -> weakref.ref[hw.Worker]:
    worker = hw.Worker("keeper")
    kept: list[hw.Context] = []
    came = asyncio.Event()

    @worker.on("task")
    async def keep(message: hw.Message, ctx: hw.Context) -> None:
        kept.append(ctx)
        came.set()

    async with hw.connect(f"memory://{uuid4().hex}") as protocol:
        serving = asyncio.create_task(worker.serve(protocol, stop=came.wait()))
        await protocol.send(hw.Message(type="task", sender="test", to="keeper"))
        await serving
    return weakref.ref(worker)


def test_a_handler_that_keeps_its_context_keeps_nothing_alive_for_ever() -> None:
    """Worker, handler and context are a circle then: it must be one that the collector sees."""
    worker = asyncio.run(_a_worker_that_keeps_its_context())
    gc.collect()
    assert worker() is None
