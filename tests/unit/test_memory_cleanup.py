"""What `cleanup` forgets of a memory store."""

from __future__ import annotations

import asyncio

from hivewire.message import Message
from hivewire.testing.kit import memory
from hivewire.testing.virtual_time import virtual


@virtual
async def test_idempotency_keys_are_forgotten_by_their_age() -> None:
    async with memory() as protocol:
        for n, key in enumerate(["old", "young"]):
            await protocol.send(Message(type="task", sender="me", to="coder", content=n), idempotency_key=key)
            await asyncio.sleep(100)
        assert await protocol.cleanup(older_than_s=150) == 1
        again = [
            await protocol.send(Message(type="task", sender="me", to="coder"), idempotency_key=key)
            for key in ("old", "young")
        ]
        assert [receipt.duplicate for receipt in again] == [False, True]


@virtual
async def test_a_key_that_was_used_just_now_is_forgotten_when_everything_is() -> None:
    async with memory() as protocol:
        await protocol.send(Message(type="task", sender="me", to="coder"), idempotency_key="k")
        assert await protocol.cleanup(older_than_s=0) == 1
        again = await protocol.send(Message(type="task", sender="me", to="coder"), idempotency_key="k")
        assert again.duplicate is False
        assert (await protocol.depth("coder")).ready == 2
