"""`once` beside the end of its protocol."""

from __future__ import annotations

import asyncio
from unittest.mock import patch

import pytest

from hivewire.backends.memory.backend import MemoryBackend
from hivewire.engine.once import Once
from hivewire.engine.tasks import Tasks
from hivewire.settings import Settings


async def test_a_cancel_in_the_end_stays_a_cancel() -> None:
    """What is cancelled because all ends would count as a failed attempt if it ended by another error."""
    backend, tasks, asked = MemoryBackend(Settings()), Tasks(), asyncio.Event()

    async def away(*_: object, **__: object) -> None:
        asked.set()
        await asyncio.Event().wait()

    async def work() -> int:
        return 1

    await backend.open()
    with patch.object(backend, "put", away):
        asking = asyncio.create_task(Once(backend, tasks, "n", lease_s=1.0, keep_s=1.0).result(work, None))
        await asked.wait()
        await tasks.close()
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking
    await backend.close()
