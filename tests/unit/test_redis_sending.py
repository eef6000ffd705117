"""What is sent plainly, and what by a script, against a link whose answers are given by hand."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import hiredis
import pytest

from hivewire.backend import Append, Record
from hivewire.backends.redis import scripts
from hivewire.backends.redis.address import Command, Reply
from hivewire.backends.redis.keys import base
from hivewire.backends.redis.link import Link
from hivewire.backends.redis.sending import Sending
from hivewire.errors import BackendError

STORED: list[Any] = [b"stored", 8, 1_000_000, b"ordered", 0, 1]
ASK = hiredis.ReplyError("ASK 1 127.0.0.1:2")


class ByHand(Link):
    def __init__(self) -> None:
        self.posted: list[tuple[Sequence[Command], asyncio.Future[list[Reply]]]] = []
        self.stored = 0

    def post(
        self, commands: Sequence[Command], *, firm: bool = False, beyond_s: float = 0.0
    ) -> asyncio.Future[list[Reply]]:
        self.posted.append((commands, asyncio.get_running_loop().create_future()))
        return self.posted[-1][1]

    def store(
        self, key: str, packed: bytes, channel: str = "", what: int = 0
    ) -> asyncio.Future[BackendError | None] | None:
        self.stored += 1
        return asyncio.get_running_loop().create_future()

    def ring(self, channel: str, what: int | str) -> None:
        return

    async def each(self, commands: Sequence[Command]) -> list[tuple[str, list[Reply]]]:
        return []

    def cut(self, why: str) -> None:
        return

    async def close(self) -> None:
        return


def record(ttl_s: float | None = None) -> Record:
    return Record("id", "k", b"{}", "t", "me", ttl_s)


def is_script(commands: Sequence[Command], script: str) -> bool:
    return commands[0][:4] == scripts.run(script, base("q"))[:4]


async def appended(sending: Sending, link: ByHand, entry: Append, answer: Reply) -> Any:
    appending = asyncio.create_task(sending.append((entry,)))
    await asyncio.sleep(0)
    commands, answered = link.posted.pop(0)
    answered.set_result([answer, *[1] * (len(commands) - 1)])
    return await appending


@pytest.fixture
async def known() -> tuple[ByHand, Sending]:
    """Of a queue with much room."""
    link = ByHand()
    sending = Sending(link, 8, 1_000_000, (), lambda _base, _shard: False)
    assert await appended(sending, link, Append("q", (record(),)), STORED) == {}
    return link, sending


@pytest.mark.parametrize("slow", [{"records": (record(60.0),)}, {"records": (record(),), "idempotency_key": "once"}])
async def test_nothing_goes_plainly_behind_a_script(known: tuple[ByHand, Sending], slow: dict[str, Any]) -> None:
    """The server may refuse the script, and take what comes behind it."""
    link, sending = known
    assert sending.soon("q", record()) is not None
    first = asyncio.create_task(sending.append((Append("q", **slow),)))
    await asyncio.sleep(0)
    assert sending.soon("q", record()) is None
    second = asyncio.create_task(sending.append((Append("q", (record(), record())),)))
    await asyncio.sleep(0)
    assert all(is_script(commands, scripts.APPEND) for commands, _ in link.posted)
    for commands, answered in link.posted:
        answered.set_result([STORED, *[1] * (len(commands) - 1)])
    await asyncio.gather(first, second)
    assert sending.soon("q", record()) is not None


async def test_what_is_delayed_holds_up_nothing(known: tuple[ByHand, Sending]) -> None:
    _, sending = known
    late = asyncio.create_task(sending.append((Append("q", (record(),), 1.0),)))
    await asyncio.sleep(0)
    assert sending.soon("q", record()) is not None
    late.cancel()


@pytest.mark.parametrize(
    ("parts", "is_plain"),
    [
        ([[b"8", b"1000000", b"ordered"], 0, *[7] * 8], True),
        ([[b"8", b"60", b"ordered"], 0, *[7] * 8], False),
        ([[None, None, None], 0, *[0] * 8], False),
        ([ASK, 0, *[0] * 8], False),
    ],
)
async def test_while_the_slot_moves_room_is_asked_for_key_by_key(parts: list[Any], is_plain: bool) -> None:
    """And what goes plainly does; a queue that is full, or not there, or cannot be asked, needs the script."""
    link = ByHand()
    sending = Sending(link, 8, 1_000_000, (), lambda _base, _shard: False)
    refused = await appended(sending, link, Append("q", (record(),)), ASK)
    assert isinstance(refused[0], BackendError)
    ((commands, answered),) = link.posted
    assert [command[0] for command in commands] == ["HMGET", "ZCARD", *["XLEN"] * 8]
    answered.set_result(parts)
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert (sending.soon("q", record()) is not None) == is_plain
