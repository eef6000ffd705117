"""How a process leaves the queues it reads."""

from __future__ import annotations

import asyncio
import logging

import pytest

import hivewire as hw
from hivewire.engine.inbox import Inbox
from hivewire.errors import ConnectionLost


async def test_all_queues_are_left_at_once_whatever_becomes_of_one(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    barrier, close = asyncio.Barrier(3), Inbox.close

    async def slow(inbox: Inbox) -> None:
        await barrier.wait()  # whoever goes on before all have begun would wait for ever
        await close(inbox)
        if inbox.queue == "b":
            raise ConnectionLost("the store is away")

    protocol = hw.connect("memory://")
    for agent in "abc":
        assert await protocol.receive(agent, wait_s=0) == []
    monkeypatch.setattr(Inbox, "close", slow)
    async with asyncio.timeout(10):
        with caplog.at_level(logging.WARNING):
            await protocol.close()
    assert [record.message for record in caplog.records] == ["left without the store"]
