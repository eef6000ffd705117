"""An outage is told once, and its end."""

from __future__ import annotations

import asyncio
import logging

import pytest

from hivewire.engine.outage import Outage, join
from hivewire.testing.virtual_time import virtual


def test_it_is_told_once_and_again_after_a_minute(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [100.0]
    monkeypatch.setattr("hivewire.engine.outage.time.monotonic", lambda: now[0])
    outage = Outage(logging.getLogger("hivewire.test"), "take messages", "coder")
    with caplog.at_level(logging.INFO, "hivewire.test"):
        outage.is_over()
        for _ in range(700):
            outage.goes_on(OSError("away"))
            now[0] += 0.1
        outage.is_over()
        outage.is_over()
        outage.goes_on(OSError("away"))
    assert [(record.levelname, record.getMessage()) for record in caplog.records] == [
        ("WARNING", "cannot take messages yet"),
        ("WARNING", "cannot take messages yet"),
        ("INFO", "can take messages again"),
        ("WARNING", "cannot take messages yet"),
    ]


@pytest.mark.parametrize("ended_by", ["cancel", "stop"])
@virtual
async def test_what_is_joined_at_the_moment_of_the_end_is_told_to_somebody(ended_by: str) -> None:
    """Else it would be held by nobody: the joining itself is ended, or its result is given."""
    log = logging.getLogger("hivewire.test")
    for turns in range(6):
        stop, gate = asyncio.Future[object](), asyncio.Future[None]()
        held: list[str] = []

        async def call(gate: asyncio.Future[None] = gate, held: list[str] = held) -> str:
            await gate
            held.append("inbox")
            return "inbox"

        joining = asyncio.create_task(join(stop, log, "coder", call))
        await asyncio.sleep(0.1)
        gate.set_result(None)
        for _ in range(turns):
            await asyncio.sleep(0)
        if ended_by == "stop":
            stop.set_result(None)
        else:
            joining.cancel()
        await asyncio.wait([joining])
        told = [] if joining.cancelled() or joining.result() is None else [joining.result()]
        assert told == held, f"{turns} turns after it had joined"


@virtual
async def test_who_is_stopped_before_it_begins_begins_nothing() -> None:
    async def call() -> str:
        raise AssertionError

    stop = asyncio.Future[object]()
    stop.set_result(None)
    assert await join(stop, logging.getLogger("hivewire.test"), "coder", call) is None
