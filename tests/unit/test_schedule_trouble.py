"""A schedule that one process cannot fire holds up no other."""

from __future__ import annotations

from secrets import token_hex
from typing import Any
from unittest.mock import patch

import hivewire as hw
from hivewire.engine import schedules
from hivewire.testing.conformance.waiting import until


async def test_a_middleware_that_raises_ends_no_other_schedule() -> None:
    seen: list[str] = []

    async def picky(message: hw.Message, go_on: Any) -> Any:
        seen.append(message.type)
        if message.type == "bad" and seen.count("bad") == 1:
            raise ValueError("not now")
        return await go_on(message)

    with patch.object(schedules, "_LOOK_S", 0.3):
        async with hw.connect(f"memory://{token_hex(8)}", outgoing=[picky]) as protocol:
            await protocol.schedule("bad", "100ms", hw.Message(type="bad", sender="tester", to="clock"))
            await until(lambda: "bad" in seen, "a first try", 10)
            await protocol.schedule("good", "100ms", hw.Message(type="good", sender="tester", to="clock"))
            await until(lambda: seen.count("good") > 2, "the other goes on", 10)
            await until(lambda: seen.count("bad") > 2, "it is tried again", 10)
