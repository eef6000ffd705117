"""Contents of messages for which a full queue had no room."""

from __future__ import annotations

import asyncio
from pathlib import Path
from secrets import token_hex

import pytest

import hivewire as hw
from hivewire.errors import BackendError
from hivewire.testing.conformance.waiting import until


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
