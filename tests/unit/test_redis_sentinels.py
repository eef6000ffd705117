"""When it is believed that another server is the master: against sentinels that are scripted."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from hivewire.backends.redis.address import Address, replaced
from hivewire.backends.redis.line import Line
from hivewire.backends.redis.opening import new_link
from hivewire.backends.redis.sentinels import Switches
from hivewire.errors import ConnectionLost
from hivewire.settings import RedisSettings
from hivewire.testing.conformance.waiting import until
from tests.unit.test_redis_wire import Fake, answering, read_command

OLD = "127.0.0.1", 1


class Sentinel(Fake):
    """It is the master itself. `hangs_up` ends the connections of those who listen; `is_mute`: it says of the master
    nothing."""

    def __init__(self) -> None:
        super().__init__(self._answer)
        self.asked = 0
        self.subscribed = 0
        self.is_mute = False
        self._listening: list[asyncio.StreamWriter] = []

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            command = await read_command(reader)
            if command[0] == b"SUBSCRIBE":
                self.subscribed += 1
                self._listening.append(writer)
                writer.write(b"*3\r\n$9\r\nsubscribe\r\n$14\r\n+switch-master\r\n:1\r\n")
            elif command[0] == b"PING":
                writer.write(b"*2\r\n$4\r\npong\r\n$0\r\n\r\n")
            elif command[0] == b"ROLE":
                writer.write(b"*1\r\n$6\r\nmaster\r\n")
                self.asked += 1
            elif not self.is_mute:
                writer.write(b"*2\r\n$9\r\n127.0.0.1\r\n$%d\r\n%d\r\n" % (len(str(self.port)), self.port))

    def hang_up(self) -> None:
        for writer in self._listening:
            writer.close()
        self._listening.clear()


class Heard:
    """How often it was said that another server is the master."""

    def __init__(self, *reached: tuple[str, int]) -> None:
        self.reached = set(reached)
        self.switched = 0

    def __call__(self) -> None:
        self.switched += 1


def settings(sentinel: Sentinel) -> RedisSettings:
    return RedisSettings(addr=f"127.0.0.1:{sentinel.port}", sentinel_master="hive")


@asynccontextmanager
async def switches(sentinel: Sentinel, heard: Heard) -> AsyncIterator[None]:
    made = Switches(settings(sentinel), lambda: heard.reached, heard)
    try:
        yield
    finally:
        await made.close()


async def test_a_sentinel_that_comes_back_is_no_other_master() -> None:
    async with Sentinel().listening() as sentinel:
        assert isinstance(sentinel, Sentinel)
        heard = Heard(("127.0.0.1", sentinel.port))
        async with switches(sentinel, heard):
            for times in (1, 2, 3):
                await until(lambda times=times: sentinel.asked == times, "it is asked who is the master")  # type: ignore[misc]
                sentinel.hang_up()
        assert (sentinel.subscribed, heard.switched) == (3, 0)


async def test_a_switch_before_the_first_subscription_is_noticed() -> None:
    async with Sentinel().listening() as sentinel:
        assert isinstance(sentinel, Sentinel)
        heard = Heard(OLD)
        async with switches(sentinel, heard):
            await until(lambda: heard.switched == 1, "the link goes to one that is the master no more")
            assert Address.of(settings(sentinel)).at(*OLD).is_replaced()
            assert not Address.of(settings(sentinel)).is_replaced()


async def test_a_switch_while_no_sentinel_was_listened_to_is_noticed() -> None:
    async with Sentinel().listening() as sentinel:
        assert isinstance(sentinel, Sentinel)
        heard = Heard(("127.0.0.1", sentinel.port))
        async with switches(sentinel, heard):
            await until(lambda: sentinel.asked == 1, "it is asked who is the master")
            heard.reached = {OLD}
            sentinel.hang_up()
            await until(lambda: heard.switched == 1, "the link goes to one that is the master no more")


async def test_a_question_without_an_answer_ends_with_who_asked() -> None:
    async with Sentinel().listening() as sentinel:
        assert isinstance(sentinel, Sentinel)
        sentinel.is_mute = True
        async with switches(sentinel, Heard(OLD)):
            await until(lambda: sentinel.connections == 2, "it is asked who is the master")
        assert not [task for task in asyncio.all_tasks() if task.get_name() == "ask who is the master"]


async def test_a_connection_is_not_made_to_a_master_that_is_replaced_meanwhile() -> None:
    async with Fake(answering(b"+OK\r\n", b"+PONG\r\n")).listening() as fake:
        found = RedisSettings(addr=f"127.0.0.1:{fake.port}", sentinel_master="hive")

        async def where() -> Address:
            asyncio.get_running_loop().call_soon(replaced, found, "127.0.0.1", fake.port)
            return Address.of(found)

        line = Line(where, "the master", (("READY",),))
        with pytest.raises(ConnectionLost, match="the master no more"):
            await line.call("PING")
        assert line.reached() == set()
        await line.close()


@pytest.mark.parametrize("more", [{}, {"pool_size": 2}, {"wait_replicas": 1}])
async def test_a_link_says_where_its_connections_go(more: dict[str, Any]) -> None:
    async with Fake(answering(b"+PONG\r\n")).listening() as fake:
        link = new_link(RedisSettings(addr=f"127.0.0.1:{fake.port}", min_idle_conns=0, **more))
        assert link.reached() == set()
        await link.call("PING")
        assert link.reached() == {("127.0.0.1", fake.port)}
        await link.close()
        assert link.reached() == set()
