"""A fan-out that is there whenever its process dies."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import partial

import pytest

from hivewire.backend import Append, Duplicate
from hivewire.engine.protocol import Engine
from hivewire.errors import Closed
from hivewire.factory import connect
from hivewire.ids import new_id
from hivewire.message import Message
from hivewire.rules import blame
from hivewire.testing.virtual_time import virtual

_DEATHS = 3


async def _die_before_copies(
    member: Engine, died: list[Engine], batch: Sequence[Append]
) -> Mapping[int, Duplicate | Exception]:
    if any(part.queue == "agent" for part in batch):
        await asyncio.sleep(0.1)  # by then its mark is stored
        died.append(member)
        member.abandon()
        await asyncio.Event().wait()
    return await type(member.backend).append(member.backend, batch)


@virtual
async def test_a_fan_out_that_kills_every_process_is_given_up() -> None:
    """Long after a handler would have been, but it does not go round all processes for ever."""
    url, died = f"memory://{new_id()}", list[Engine]()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(blame, "MOST_INTERNAL_CRASHES", _DEATHS)
        async with connect(url) as looking:
            while not (letters := await looking.dead_letters()):
                assert len(died) <= _DEATHS
                member = connect(url, lease_s=1, max_attempts=1)
                assert isinstance(member, Engine)
                patch.setattr(member.backend, "append", partial(_die_before_copies, member, died))
                if not died:
                    await member.subscribe("agent", groups=["g"])
                    await member.broadcast(Message(type="event", sender="me"), "g")
                with suppress(Closed):  # it dies meanwhile
                    await member.receive("agent", wait_s=3)  # who receives takes part in the work of its groups
                await member.close(0)
    assert (len(died), [letter.reason for letter in letters]) == (_DEATHS, ["crashed"])
