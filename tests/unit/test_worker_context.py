"""What a handler is given beside its message."""

from __future__ import annotations

import asyncio
import gc
import sys
import weakref
from uuid import uuid4

import hivewire as hw
from hivewire.testing.conformance.waiting import until_true


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


async def test_an_effect_that_exits_in_a_thread_is_a_failed_attempt_and_ends_no_loop() -> None:
    worker = hw.Worker("leaver")

    @worker.on("task", retry=hw.Retry(max_attempts=1))
    def leave(message: hw.Message, ctx: hw.Context) -> None:
        ctx.blocking.once("leave", lambda: sys.exit(3))

    async with hw.connect(f"memory://{uuid4().hex}") as protocol:
        serving = asyncio.create_task(worker.serve(protocol))
        await protocol.send(hw.Message(type="task", sender="test", to="leaver"))
        await until_true(protocol.dead_letters, "a dead letter")
        [letter] = await protocol.dead_letters("leaver")
        serving.cancel()
        await asyncio.wait([serving])
    assert "SystemExit: 3" in letter.error
