"""The shared connection, against a server that answers as it is told."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any

import pytest

from hivewire.backends.redis.link import Link, good
from hivewire.backends.redis.opening import new_link
from hivewire.errors import BackendError, Closed, ConnectionLost, QueueFull
from hivewire.settings import RedisSettings


class Scripted:
    """Says the next of its answers, in the pieces given, for whatever it hears; None: hangs up."""

    def __init__(self, *answers: list[bytes] | None) -> None:
        self.answers = list(answers)
        self.connections = 0
        self.open = 0
        self.idle = asyncio.Event()

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self.open += 1
        self.idle.clear()
        try:
            await self._talk(reader, writer)
        finally:
            writer.close()
            self.open -= 1
            if not self.open:
                self.idle.set()

    async def _talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError):
            while await reader.read(65536):
                if not self.answers:
                    continue
                answer = self.answers.pop(0)
                if answer is None:
                    break
                for piece in answer:
                    writer.write(piece)
                    await writer.drain()
                    await asyncio.sleep(0)


@asynccontextmanager
async def linked(scripted: Scripted, **settings: Any) -> AsyncIterator[Link]:
    server = await asyncio.start_server(scripted, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    made = RedisSettings(**{"min_idle_conns": 0, "max_retries": 0, "addr": f"127.0.0.1:{port}", **settings})
    link = new_link(made)
    try:
        yield link
    finally:
        await link.close()
        server.close()
        if scripted.connections:
            await scripted.idle.wait()


async def test_what_is_asked_in_one_turn_leaves_in_one_write_and_is_answered_in_order() -> None:
    scripted = Scripted([b"+A\r\n"], [b":1\r\n$2\r\nok\r\n*1\r\n:7\r\n"])
    async with linked(scripted) as link:
        assert await link.call("FIRST") == b"A"
        one, two = link.post([("ONE",), ("TWO",)]), link.post([("THREE",)])
        assert await one == [1, b"ok"]
        assert await two == [[7]]
        assert scripted.answers == []


async def test_an_answer_may_come_in_pieces() -> None:
    async with linked(Scripted([b"*2\r\n$5\r", b"\nhel", b"lo\r", b"\n:4", b"2\r\n"])) as link:
        assert await link.call("X") == [b"hello", 42]


async def test_an_error_in_the_middle_of_a_batch_spares_the_others() -> None:
    async with linked(Scripted([b"+OK\r\n-ERR no\r\n+OK\r\n"])) as link:
        first, error, last = await link.post([("A",), ("B",), ("C",)])
        assert (first, last) == (b"OK", b"OK")
        with pytest.raises(BackendError, match="do it: ERR no"):
            good(error, "do it")


async def test_what_was_under_way_is_lost_and_the_next_call_connects_anew() -> None:
    scripted = Scripted([b"+A\r\n"], None, [b"+B\r\n"])
    async with linked(scripted) as link:
        assert await link.call("A") == b"A"
        with pytest.raises(ConnectionLost):
            await link.call("LOST")
        assert await link.call("B") == b"B"
        assert scripted.connections == 2


async def test_a_server_that_does_not_answer_is_given_up() -> None:
    async with linked(Scripted(), read_timeout_s=0.1) as link:
        with pytest.raises(ConnectionLost, match="no answer within"):
            await link.call("SILENCE")


async def test_what_does_not_speak_the_protocol_is_an_error() -> None:
    async with linked(Scripted([b"HTTP/1.1 400 Bad Request\r\n"])) as link:
        with pytest.raises(ConnectionLost, match="does not speak as Redis does"):
            await link.call("PING")


async def test_an_answer_that_nobody_asked_for_ends_the_connection() -> None:
    async with linked(Scripted([b"+A\r\n+UNASKED\r\n"], [b"+B\r\n"])) as link:
        assert await link.call("A") == b"A"
        with suppress(ConnectionLost):
            assert await link.call("B") == b"B"


async def test_a_cancelled_caller_does_not_shift_the_answers_of_others() -> None:
    async with linked(Scripted([b"+1\r\n"], [b"+2\r\n+3\r\n"])) as link:
        await link.call("ONE")
        given_up, kept = link.post([("TWO",)]), link.post([("THREE",)])
        given_up.cancel()
        assert await kept == [b"3"]


async def test_an_error_of_who_is_told_of_an_answer_is_not_taken_for_the_server_s() -> None:
    told: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: told.append(context))
    scripted = Scripted([b"+0\r\n"], [b"+1\r\n+2\r\n"], [b"+3\r\n"])
    async with linked(scripted) as link:
        await link.call("CONNECT")

        def fails(_: object) -> None:
            raise IndexError("a mistake of ours")

        first, second = link.post_for(fails, [("ONE",)], beyond_s=0), link.post([("TWO",)])
        assert (await first, await second, await link.call("THREE")) == ([b"1"], [b"2"], b"3")
        assert scripted.connections == 1
    assert [str(context["exception"]) for context in told] == ["a mistake of ours"]


async def test_nothing_asked_is_nothing_answered_and_closed_is_closed() -> None:
    async with linked(Scripted()) as link:
        assert await link.post([]) == []
        await link.close()
        with pytest.raises(Closed):
            await link.call("PING")


@pytest.mark.parametrize("text", ["LOADING dataset", "BUSY script", "READONLY replica", "NOSCRIPT none"])
def test_what_a_server_may_recover_from_is_worth_repeating(text: str) -> None:
    with pytest.raises(ConnectionLost):
        good(RuntimeError(text), "store")


def test_a_server_without_memory_is_full() -> None:
    with pytest.raises(QueueFull, match="maxmemory"):
        good(RuntimeError("OOM command not allowed"), "store")
