"""A server that has lost its last writes, as after a failover: what it has kept is delivered, or a dead letter."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from hivewire.backend import Mode
from hivewire.backends.redis import RedisBackend
from hivewire.backends.redis.consumer import RedisConsumer
from hivewire.delivery import Delivery
from hivewire.engine.protocol import Engine
from hivewire.errors import BackendError, Reject
from hivewire.factory import connect
from hivewire.protocol import Protocol
from hivewire.testing.conformance.scenario import empty, number, send_numbered, serving, take, task
from hivewire.testing.conformance.waiting import eventually, until
from hivewire.testing.servers import RedisServer
from tests.conformance.backends import start


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RedisServer]:
    """It knows what it held at the last `SAVE`."""
    made = RedisServer(tmp_path / "redis", "--appendonly", "no")
    start(made)
    yield made
    made.kill()


def keep(server: RedisServer) -> None:
    assert server.ask("SAVE") == b"+OK"


def undo(server: RedisServer) -> None:
    server.kill()
    server.start()


async def _letters(protocol: Protocol, agent: str) -> list[int]:
    try:
        letters = await protocol.dead_letters(agent)
    except BackendError:
        return []
    return [letter.message.content["n"] for letter in letters if letter.message is not None]


@pytest.mark.parametrize("mode", ["ordered", "competing"])
async def test_a_dead_letter_that_it_has_forgotten_is_made_again(server: RedisServer, mode: Mode) -> None:
    let_go, attempts = asyncio.Event(), Counter[int]()

    async def handle(delivery: Delivery) -> None:
        attempts[number(delivery)] += 1
        await let_go.wait()
        if number(delivery) == 1:
            raise Reject("no")

    async with connect(server.url) as protocol:
        await protocol.subscribe("undone", mode=mode)
        await protocol.send_many([task("undone", n, key=f"k{n}") for n in (1, 2)])
        async with serving(protocol, "undone", handle, concurrency=2):
            await until(lambda: len(attempts) == 2, "both run")
            keep(server)
            let_go.set()
            await empty(protocol, "undone", dead=1)
            undo(server)
            await eventually(lambda: _letters(protocol, "undone"), [1])
            await empty(protocol, "undone", dead=1)
    assert attempts == {1: 2, 2: 1}


async def test_a_broadcast_whose_copies_it_has_forgotten_is_copied_again(server: RedisServer) -> None:
    async with connect(server.url) as joined:
        for agent in ("here", "away"):
            await joined.subscribe(agent, groups=["team"])
    async with connect(server.url) as sender:
        await sender.broadcast(task("", 1), "team")
        assert server.ask("XLEN", "hivewire:{~group/team}:s0") == b":1"  # nobody is there who would copy it
        keep(server)
        seen: list[int] = []

        async def handle(delivery: Delivery) -> None:
            seen.append(number(delivery))

        async with connect(server.url) as member, serving(member, "here", handle):
            await until(lambda: seen == [1], "it was fanned out")
            await empty(member, "here")
            undo(server)
            (again,) = await take(sender, "away", 1)
            assert number(again) == 1
            await empty(member, "here")
            assert seen == [1]


async def test_a_shard_that_it_gives_back_to_who_gave_it_up_is_read(server: RedisServer) -> None:
    seen: list[tuple[str | None, int]] = []

    async def handle(delivery: Delivery) -> None:
        seen.append((delivery.message.key, number(delivery)))

    keys = [f"k{n}" for n in range(40)]
    async with connect(server.url) as first, connect(server.url) as second, serving(first, "moved", handle):
        await until(lambda: _owned(first) == 8, "one has all")
        keep(server)
        async with serving(second, "moved", handle):
            await until(lambda: (_owned(first), _owned(second)) == (4, 4), "they share")
            undo(server)
            await eventually(lambda: _sent(first, keys), True)
            await until(lambda: len(seen) == len(keys), "all are handled")
            await until(lambda: (_owned(first), _owned(second)) == (4, 4), "they share again")


async def _sent(protocol: Protocol, keys: list[str]) -> bool:
    await send_numbered(protocol, "moved", 1, keys=keys)
    return True


def _owned(protocol: Protocol) -> int:
    assert isinstance(protocol, Engine)
    backend = protocol.backend
    assert isinstance(backend, RedisBackend)
    return sum(
        len(each.held) for each in backend.consumers if isinstance(each, RedisConsumer) and each.queue == "moved"
    )
