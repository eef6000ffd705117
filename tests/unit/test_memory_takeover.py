"""What a dead member had in hand goes before what waits: it was taken first."""

from __future__ import annotations

import secrets

from hivewire.engine.protocol import Engine
from hivewire.factory import connect
from hivewire.message import UNORDERED, Message


async def test_the_work_of_a_dead_member_comes_before_all_that_waits() -> None:
    url = f"memory://{secrets.token_hex(8)}"
    dying = connect(url, lease_s=1)
    async with connect(url, lease_s=1) as protocol:
        messages = [
            Message(type="task", sender="me", to="agent", key=UNORDERED, content=number) for number in range(20)
        ]
        await protocol.send_many(messages)
        held = await dying.receive("agent", limit=3)
        assert [delivery.message.content for delivery in held] == [0, 1, 2]
        assert isinstance(dying, Engine)
        dying.abandon()
        while (await protocol.depth("agent")).in_flight:  # until the lease has run out
            await protocol.receive("nobody", wait_s=0.1)
        taken = await protocol.receive("agent", limit=4)
        assert [delivery.message.content for delivery in taken] == [0, 1, 2, 3]
    await dying.close()
