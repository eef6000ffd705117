"""Middleware on the way out: everything that is sent passes it."""

from __future__ import annotations

import asyncio
import secrets
from typing import Any

import pytest

import hivewire as hw
from hivewire.engine.middleware import Next


class Noted:
    """Notes what passes, and marks it."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, str]] = []

    async def __call__(self, message: hw.Message, next: Next) -> Any:
        self.seen.append((message.type, message.to))
        return await next(message.replace(metadata={**message.metadata, "marked": True}))


async def test_sends_replies_and_broadcasts_pass_the_outgoing_middleware() -> None:
    noted = Noted()
    async with hw.connect(f"memory://{secrets.token_hex(8)}", outgoing=[noted]) as protocol:
        await protocol.subscribe("member", groups=["all"])
        await protocol.send(hw.Message(type="task", sender="me", to="member"))
        await protocol.broadcast(hw.Message(type="news", sender="me"), "all")
        got: list[hw.Message] = []
        while len(got) < 2:
            for delivery in await protocol.receive("member", wait_s=5.0):
                async with delivery:
                    got.append(delivery.message)
                    await protocol.reply(delivery.message, {"n": 1})
    assert noted.seen[:2] == [("task", "member"), ("news", "all")]
    assert noted.seen[2:] == [("response", "me"), ("response", "me")]
    assert all(message.metadata["marked"] for message in got)


async def test_a_reply_to_a_request_passes_it_on_its_way_back() -> None:
    async with hw.connect(f"memory://{secrets.token_hex(8)}", outgoing=[Noted()]) as protocol:

        async def answer() -> None:
            async for delivery in protocol.consume("oracle"):
                async with delivery:
                    await protocol.reply(delivery.message, 42)

        job = asyncio.create_task(answer())
        reply = await protocol.request(hw.Message(type="ask", sender="me", to="oracle"), timeout_s=5.0)
        job.cancel()
    assert reply.content == 42
    assert reply.metadata["marked"]


@pytest.mark.parametrize("durable", [True, False])
async def test_what_the_middleware_raises_reaches_who_broadcasts(durable: bool) -> None:
    async def refuse(message: hw.Message, next: Next) -> Any:
        raise PermissionError(message.type)

    async with hw.connect(f"memory://{secrets.token_hex(8)}", outgoing=[refuse]) as protocol:
        with pytest.raises(PermissionError, match="news"):
            await protocol.broadcast(hw.Message(type="news", sender="me"), "all", durable=durable)


@pytest.mark.parametrize("delay_s", [float("nan"), -1.0])
async def test_a_delay_that_is_none_is_refused_with_middleware_as_without(delay_s: float) -> None:
    noted = Noted()
    async with hw.connect(f"memory://{secrets.token_hex(8)}", outgoing=[noted]) as protocol:
        with pytest.raises(hw.MessageError):
            await protocol.send(hw.Message(type="task", sender="me", to="member"), delay_s=delay_s)
        depth = await protocol.depth("member")
    assert depth.ready + depth.scheduled == 0
