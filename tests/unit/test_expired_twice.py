"""A message that was sent twice under one id and runs out unread is one dead letter, in memory and in SQLite."""

from __future__ import annotations

from pathlib import Path

import pytest

import hivewire as hw
from hivewire.testing.conformance.waiting import eventually


@pytest.mark.parametrize("store", ["memory", "sqlite"])
@pytest.mark.parametrize("handled", [False, True], ids=["unread", "the first was handled"])
async def test_a_resend_that_runs_out_unread_is_no_letter_of_its_own(
    store: str, tmp_path: Path, *, handled: bool
) -> None:
    target = f"memory://{tmp_path.name}" if store == "memory" else f"sqlite:///{tmp_path}/q.db"
    message = hw.Message(type="task", sender="me", to="late", content=1, ttl_s=1.0)
    async with hw.connect(target) as protocol:
        await protocol.send(message)
        if handled:
            (delivery,) = await protocol.receive("late", wait_s=0.1)
            await delivery.ack()
        await protocol.send(message)
        await protocol.send(message.replace(id="another"))

        async def waiting() -> int:
            depth = await protocol.depth("late")
            return depth.ready + depth.in_flight + depth.scheduled

        await eventually(waiting, 0)
        ids = [letter.id for letter in await protocol.dead_letters("late")]
        assert ids == (["another"] if handled else [message.id, "another"])
        assert await protocol.replay("late") == len(ids)
        assert [one.message.id for one in await protocol.receive("late", wait_s=1.0)] == ids[:1]
