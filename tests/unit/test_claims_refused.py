"""Contents of messages for which a full queue had no room."""

from __future__ import annotations

import asyncio
from pathlib import Path
from secrets import token_hex
from unittest.mock import patch

import pytest

import hivewire as hw
from hivewire.engine.protocol import Engine
from hivewire.errors import BackendError, TimedOut
from hivewire.testing.conformance.waiting import until


async def test_who_is_cancelled_while_a_content_is_stored_leaves_none(tmp_path: Path) -> None:
    """Neither that one nor those before it in the same call."""
    url = f"memory://{token_hex(8)}"
    async with hw.connect(url, claim_check_bytes=1_000, blobs=f"folder:///{tmp_path}") as protocol:
        assert isinstance(protocol, Engine)
        store = protocol._blobs
        assert store is not None
        put, begun, goes_on, stored = store.put, asyncio.Event(), asyncio.Event(), asyncio.Event()

        async def slowly(name: str, body: bytes) -> None:
            is_second = bool(list(tmp_path.rglob("0*-*")))
            if is_second:
                begun.set()
                await goes_on.wait()
            await put(name, body)
            if is_second:
                stored.set()

        batch = [hw.Message(type="task", sender="me", to="some", content="x" * 2_000) for _ in range(3)]
        with patch.object(store, "put", slowly):
            sending = asyncio.create_task(protocol.send_many(batch))
            await begun.wait()
            sending.cancel()
            with pytest.raises(asyncio.CancelledError):
                await sending
            goes_on.set()
            await stored.wait()
            await until(lambda: not list(tmp_path.rglob("0*-*")), "nothing is left", 15)
            goes_on.clear()
            stored.clear()
            with pytest.raises(TimedOut):
                await protocol.send_many(batch, timeout_s=0.5)
            goes_on.set()
            await stored.wait()
            await until(lambda: not list(tmp_path.rglob("0*-*")), "nothing is left", 15)
        assert (await protocol.depth("some")).ready == 0


async def test_what_a_full_queue_refuses_leaves_no_content(tmp_path: Path) -> None:
    """Nor does what waits behind it, however the wait ends; on memory nothing is cancelled while it is being stored."""

    def held() -> int:
        return len(list(tmp_path.rglob("0*-*")))

    large = hw.Message(type="task", sender="me", to="full", content="x" * 2_000)
    url = f"memory://{token_hex(8)}"
    async with hw.connect(url, queue_cap=1, claim_check_bytes=1_000, blobs=f"folder:///{tmp_path}") as protocol:
        await protocol.send(large)
        tries = [protocol.send(large, timeout_s=0.3) for _ in range(3)]
        assert all(isinstance(end, BackendError) for end in await asyncio.gather(*tries, return_exceptions=True))
        await until(lambda: held() == 1, "the refused ones are gone", 15)
        sending = [asyncio.create_task(protocol.send(large)) for _ in range(2)]
        await until(lambda: held() == 3, "contents were put away", 15)
        for task in sending:
            task.cancel()
        for task in sending:
            with pytest.raises(asyncio.CancelledError):
                await task
        await until(lambda: held() == 1, "the cancelled ones are gone", 15)
        (delivery,) = await protocol.receive("full")
        assert delivery.message.content == large.content
        await delivery.ack()
