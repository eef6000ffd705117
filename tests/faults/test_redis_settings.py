"""Settings of the connection, seen from a real server."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from hivewire.backends.redis.keys import base
from hivewire.backends.redis.opening import new_link
from hivewire.backends.redis.packing import hashed, pack_head
from hivewire.codec import encode
from hivewire.delivery import Delivery
from hivewire.factory import connect
from hivewire.ids import new_id
from hivewire.record import Record
from hivewire.settings import RedisSettings
from hivewire.testing.conformance.scenario import one_letter, serving, take, task
from hivewire.testing.conformance.waiting import until
from hivewire.testing.leaks import nothing_left_behind
from hivewire.testing.redis_groups import say
from hivewire.testing.servers import RedisServer
from tests.conformance.backends import start


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[RedisServer]:
    made = RedisServer(tmp_path / "redis")
    start(made)
    async with nothing_left_behind():
        yield made
    made.kill()


def clients(server: RedisServer) -> list[str]:
    """Of others than who asks: the last command of each connection."""
    return [line for line in say(server, "CLIENT", "LIST").splitlines() if "cmd=client|list" not in line]


def speaking(server: RedisServer) -> int:
    return len([line for line in clients(server) if " sub=0 " in line])


@pytest.mark.parametrize(
    ("environment", "most"),
    [
        ({}, 2),
        ({"REDIS_POOL_SIZE": "4"}, 5),
        ({"REDIS_POOL_SIZE": "4", "HIVEWIRE_REDIS_WAIT_REPLICAS": "1", "HIVEWIRE_REDIS_WAIT_TIMEOUT_S": "10ms"}, 9),
    ],
)
async def test_connections_are_as_many_as_the_settings_say_however_many_agents(
    server: RedisServer, environment: dict[str, str], most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those for messages (twice, where sends wait for replicas), one for leases, one for bells."""
    monkeypatch.setenv("REDIS_ADDR", f"127.0.0.1:{server.port}")
    monkeypatch.setenv("PROTOCOL_TYPE", "redis")
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    firm = "HIVEWIRE_REDIS_WAIT_REPLICAS" in environment
    async with connect() as protocol:
        for n in range(100):
            assert await protocol.receive(f"agent-{n}", wait_s=0) == []
        if not firm:  # there is no replica
            await protocol.send_many([task(f"agent-{n}", n) for n in range(100)])
            for n in range(100):
                await take(protocol, f"agent-{n}", 1)
        assert speaking(server) == most
        assert len(clients(server)) == most + 1


async def test_connections_that_are_kept_open_are_there_at_the_start_and_again(server: RedisServer) -> None:
    async with connect(f"{server.url}?pool_size=6&min_idle_conns=4"):
        await until(lambda: speaking(server) == 5, "four for messages, one for leases")
        say(server, "CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
        await until(lambda: speaking(server) >= 4, "they are there again though nothing is sent")


async def test_the_database_is_the_one_of_the_setting(server: RedisServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REDIS_DB", "3")
    async with connect(server.url) as here:
        await here.send(task("agent", 1))
        assert re.findall(r"^db(\d+):", say(server, "INFO", "keyspace"), re.MULTILINE) == ["3"]
        async with connect(f"{server.url}/0") as elsewhere:
            assert await elsewhere.receive("agent", wait_s=0) == []
        await take(here, "agent", 1)


async def test_a_message_lives_for_the_ttl_of_the_setting(server: RedisServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REDIS_MESSAGE_TTL", "50ms")
    async with connect(server.url) as protocol:
        await protocol.send(task("late", 1))
        assert (await one_letter(protocol, "late")).reason == "expired"


@pytest.mark.parametrize("mode", ["ordered", "competing"])
async def test_who_waits_looks_after_the_block_timeout(server: RedisServer, mode: str) -> None:
    """A record that came without a bell."""
    async with connect(server.url, redis={"block_timeout_s": 0.1}) as protocol:
        await protocol.subscribe("quiet", mode=mode)  # type: ignore[arg-type]  # one of the two
        seen: list[float] = []
        loop = asyncio.get_running_loop()

        async def handle(delivery: Delivery) -> None:
            seen.append(loop.time())

        async with serving(protocol, "quiet", handle):
            await protocol.send(task("quiet", 1))
            await until(lambda: seen, "it is awake")
            body = encode(task("quiet", 2), 1_000_000)
            record = Record(id=new_id(), key="tester", body=body)
            stream = f"{base('quiet')}s{hashed(record.id if mode == 'competing' else record.key) % 8}"
            link = new_link(RedisSettings(addr=f"127.0.0.1:{server.port}"))
            began = loop.time()
            await link.call("XADD", stream, "*", "h", pack_head(record), "b", record.body)
            await link.close()
            await until(lambda: len(seen) == 2, "it is found")
            assert seen[1] - began < 1.9  # by default it is 2 s
