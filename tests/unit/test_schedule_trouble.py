"""Schedules of which one process cannot fire some, or does not know of."""

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


async def test_one_whose_name_was_left_behind_is_fired_by_all_when_it_is_made_again() -> None:
    """As by somebody who ended it while another one made it."""
    beat = hw.Message(type="beat", sender="tester", to="clock")
    store, key = f"memory://{token_hex(8)}", schedules._PREFIX + "beat"
    with patch.object(schedules, "_LOOK_S", 0.1), patch.object(schedules, "_LOOK_SELDOM_S", 0.1):
        left: Any = hw.connect(store)
        async with left:
            await left.schedule("beat", "@yearly", beat)
            known = left._parts.schedules
            await until(lambda: "beat" in known._known, "it is known", 10)
            await left.backend.put(key, b"", (await left.backend.get(key)).version)
            known._look_again()
            await until(lambda: known._version >= 0 and not known._known, "it is gone", 10)
            async with hw.connect(store) as other:
                await other.schedule("beat", "@yearly", beat)
            await until(lambda: "beat" in known._known, "who is left knows of it", 10)
