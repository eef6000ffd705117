"""What each setting of a connection does, and what a server may do to it, against a server that is scripted byte by
byte."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any

import pytest

from hivewire.backends.redis.address import pack
from hivewire.backends.redis.line import Line
from hivewire.backends.redis.link import Link, good
from hivewire.backends.redis.opening import lean_link, new_link
from hivewire.errors import BackendError, ConnectionLost
from hivewire.settings import RedisSettings
from hivewire.testing.conformance.waiting import until
from hivewire.testing.leaks import no_unhandled_errors

Talk = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


class Fake:
    """A server on a real socket; each connection is led by `talk`."""

    def __init__(self, talk: Talk) -> None:
        self._talk = talk
        self.heard = b""
        self.connections = 0
        self._running: set[asyncio.Task[None]] = set()
        self.port = 0

    @asynccontextmanager
    async def listening(self) -> AsyncIterator[Fake]:
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        try:
            yield self
        finally:
            server.close()
            for task in self._running:
                task.cancel()
            await asyncio.gather(*self._running, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._running.add(task)
        self.connections += 1
        try:
            with suppress(ConnectionError, asyncio.CancelledError):  # its end: nothing waits for it
                await self._talk(reader, writer)
        finally:
            writer.close()


@asynccontextmanager
async def linked(talk: Talk, **settings: Any) -> AsyncIterator[tuple[Link, Fake]]:
    async with Fake(talk).listening() as fake:
        values = {"min_idle_conns": 0, "max_retries": 0, "addr": f"127.0.0.1:{fake.port}", **settings}
        link = new_link(RedisSettings(**values))
        try:
            yield link, fake
        finally:
            await link.close()


async def read_command(reader: asyncio.StreamReader) -> list[bytes]:
    """The next command, as its parts."""
    count = int((await _line(reader))[1:])
    return [(await reader.readexactly(int((await _line(reader))[1:]) + 2))[:-2] for _ in range(count)]


async def _line(reader: asyncio.StreamReader) -> bytes:
    line = await reader.readline()
    if not line:
        raise ConnectionResetError
    return line


def answering(*answers: bytes) -> Talk:
    """One of these for each command, over all connections; then silence."""
    left = list(answers)

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            await read_command(reader)
            if left:
                writer.write(left.pop(0))

    return talk


ANSWER = b"+OK\r\n:42\r\n-ERR no\r\n$5\r\nhe\r\no\r\n*2\r\n$1\r\na\r\n*1\r\n:7\r\n$-1\r\n"
WANTED = [b"OK", 42, "ERR no", b"he\r\no", [b"a", [7]], None]


@pytest.mark.parametrize("cut", range(1, len(ANSWER)))
async def test_an_answer_may_be_cut_at_every_byte(cut: int) -> None:
    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for _ in WANTED:
            await read_command(reader)
        writer.write(ANSWER[:cut])
        await writer.drain()
        await asyncio.sleep(0.001)  # so that it goes in two pieces
        writer.write(ANSWER[cut:])
        await reader.read()

    async with linked(talk) as (link, _):
        got = await link.post([("X", n) for n in range(len(WANTED))])
        assert [str(each) if isinstance(each, Exception) else each for each in got] == WANTED


async def test_what_the_server_says_of_its_own_accord_is_no_answer() -> None:
    """RESP3: after `HELLO 3` a server may push between answers, and inside what looks like a batch."""
    push = b">2\r\n+invalidate\r\n*1\r\n+key\r\n"

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        assert (await read_command(reader))[0] == b"HELLO"
        writer.write(b"%1\r\n+proto\r\n:3\r\n" + push)
        for number in range(3):
            await read_command(reader)
            writer.write(push + b":%d\r\n" % number + push)
        await reader.read()

    async with linked(talk) as (link, _):
        assert await link.call("HELLO", 3) == {b"proto": 3}
        assert await link.post([("A",), ("B",), ("C",)]) == [0, 1, 2]


async def test_more_than_the_window_is_not_under_way() -> None:
    most = 0

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal most
        waiting = 0
        while True:
            try:
                async with asyncio.timeout(0.05):
                    await read_command(reader)
                    waiting += 1
                    most = max(most, waiting)
            except TimeoutError:
                writer.write(b"+OK\r\n" * waiting)
                waiting = 0

    async with linked(talk, pipeline_size=3) as (link, _):
        first = link.post([("A",)] * 5)
        await until(lambda: most == 3, "the first three are under way")
        second = link.post([("B",)] * 2)
        assert (len(await first), len(await second)) == (5, 2)
    assert most == 3


@pytest.mark.parametrize("window", [None, 3])
async def test_each_of_those_who_store_is_told_of_its_own_command(window: int | None) -> None:
    """In several writes, between the questions of others; one has given up."""

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            number = int((await read_command(reader))[1])
            writer.write(b"-ERR of %d\r\n" % number if number % 3 == 0 else b"$2\r\n%02d\r\n" % number)

    stored: dict[int, asyncio.Future[BackendError | None]] = {}
    asked: dict[int, asyncio.Future[list[Any]]] = {}
    async with asyncio.timeout(20), linked(talk, pipeline_size=window) as (link, _):
        await link.post([("CONNECT", 1)])
        for number in range(40):
            if number % 7 == 5:
                asked[number] = link.post([("ASK", number)])
                continue
            future = link.store("key", pack(("STORE", number)))
            assert future is not None
            stored[number] = future
            if number % 5 == 4:
                await asyncio.sleep(0)  # the next one leaves in another write
        stored[8].cancel()
        for number, answer in asked.items():
            (told,) = await answer
            assert str(told) == (f"ERR of {number}" if number % 3 == 0 else str(b"%02d" % number))
        for number, future in stored.items():
            if number != 8:
                problem = await future
                assert (problem is None) == (number % 3 != 0)
                assert problem is None or str(problem).startswith(f"store a message: ERR of {number}")
        lost = [link.store("key", pack(("STORE", number))) for number in range(3)]
        link.cut("test")
        for future in lost:
            assert future is not None
            with pytest.raises(ConnectionLost, match="test"):
                await future


async def test_commands_wait_for_others_as_long_as_they_are_told_to() -> None:
    loop = asyncio.get_running_loop()
    async with linked(answering(*[b"+OK\r\n"] * 20), flush_interval_s=0.2) as (link, _):
        await link.call("CONNECT")
        began = loop.time()
        await link.call("ALONE")
        assert loop.time() - began > 0.19


async def test_a_full_write_waits_for_nobody() -> None:
    talk = answering(*[b"+OK\r\n"] * 20)
    async with linked(talk, flush_interval_s=30.0, pipeline_size=4, read_timeout_s=60.0) as (link, _):
        async with asyncio.timeout(20):
            await link.post([("CONNECT",)] * 4)
            await link.post([("A",)] * 4)


async def test_a_server_that_takes_nothing_is_given_up_after_the_write_timeout() -> None:
    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_command(reader)
        writer.write(b"+OK\r\n")
        reader._transport.pause_reading()  # type: ignore[attr-defined]  # its own limit would take some
        await asyncio.Event().wait()

    async with linked(talk, write_timeout_s=0.2, read_timeout_s=30.0) as (link, _):
        await link.call("CONNECT")
        with pytest.raises(ConnectionLost, match=r"has not left this machine within 0.2 s"):
            await link.post([("BIG", b"x" * 50_000_000)])


async def test_silence_is_borne_for_the_read_timeout_and_no_longer() -> None:
    loop = asyncio.get_running_loop()
    async with linked(answering(b"+OK\r\n"), read_timeout_s=0.2) as (link, _):
        await link.call("CONNECT")
        began = loop.time()
        with pytest.raises(ConnectionLost, match=r"no answer within 0.2 s"):
            await link.call("SILENCE")
        assert 0.2 <= loop.time() - began < 2


async def test_a_command_that_waits_in_the_server_has_that_time_beyond_the_read_timeout() -> None:
    """A blocking read of `block_timeout_s`."""

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_command(reader)
        await asyncio.sleep(0.5)
        writer.write(b"+LATE\r\n")
        await reader.read()

    async with linked(talk, read_timeout_s=0.1) as (link, _):
        assert await link.post([("XREAD", "BLOCK", 450)], beyond_s=1.0) == [b"LATE"]


async def test_answers_that_keep_coming_are_no_silence() -> None:
    """A batch that takes longer than the time-out, answered bit by bit."""

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for _ in range(8):
            await read_command(reader)
        for _ in range(8):
            await asyncio.sleep(0.05)
            writer.write(b"+OK\r\n")
        await reader.read()

    async with linked(talk, read_timeout_s=0.2) as (link, _):
        assert len(await link.post([("A",)] * 8)) == 8


async def test_a_server_that_takes_the_connection_and_says_nothing() -> None:
    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()

    async with linked(talk, dial_timeout_s=0.2, db=1) as (link, _):
        with pytest.raises(ConnectionLost, match=r"no answer within 0.2 s"):
            await link.call("PING")


@pytest.mark.parametrize(("retries", "tries"), [(0, 1), (3, 4)])
async def test_a_command_that_may_be_carried_out_twice_is_tried_so_often(retries: int, tries: int) -> None:
    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_command(reader)

    async with linked(talk, max_retries=retries) as (link, fake):
        with pytest.raises(ConnectionLost):
            await link.call("GET", "x")
        assert fake.connections == tries


async def test_what_passes_is_tried_again_and_what_does_not_is_not() -> None:
    async with linked(answering(b"-LOADING x\r\n", b"+OK\r\n", b"-ERR x\r\n", b"+NEVER\r\n"), max_retries=3) as (
        link,
        _,
    ):
        assert await link.call("GET", "x") == b"OK"
        with pytest.raises(BackendError, match="ERR x"):
            await link.call("GET", "x")
        assert await link.call("GET", "x") == b"NEVER"


async def test_what_was_sent_with_unknown_outcome_is_not_repeated_by_the_link() -> None:
    """Who sends knows whether it has an id that the receiver drops the second time."""

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heard.append(await read_command(reader))

    heard: list[list[bytes]] = []
    async with linked(talk, max_retries=3) as (link, _):
        with pytest.raises(ConnectionLost):
            await link.post([("XADD", "s", "*", "b", "1")])
        assert len(heard) == 1


async def test_who_comes_in_the_turn_of_the_loss_does_not_overtake_those_who_lost() -> None:
    async with linked(answering(b"+OK\r\n")) as (link, _):
        await link.call("CONNECT")
        assert isinstance(link, Line)
        first = link.post([("FIRST",)])
        late: list[asyncio.Future[Any]] = []
        link.on_return = None
        ended = link._ended

        def seen(wire: Any) -> None:
            ended(wire)
            late.append(link.post([("SECOND",)]))

        link._wire._on_end = seen  # type: ignore[union-attr]  # the moment between the loss and the news of it
        link.cut("test")
        with pytest.raises(ConnectionLost, match="test"):
            await first
        (second,) = late
        with pytest.raises(ConnectionLost, match="a moment ago"):
            await second


class Replicas:
    """Counts the questions, and answers that so many replicas have it."""

    def __init__(self, have: int) -> None:
        self.have = have
        self.asked: list[list[bytes]] = []

    async def talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            command = await read_command(reader)
            if command[0] == b"WAIT":
                self.asked.append(command)
                writer.write(b":%d\r\n" % self.have)
            else:
                writer.write(b"-ERR bad\r\n" if command[0] == b"BAD" else b"+OK\r\n")


async def test_sends_of_one_turn_wait_for_replicas_together() -> None:
    replicas = Replicas(2)
    async with linked(replicas.talk, wait_replicas=2, wait_timeout_s=0.5) as (link, _):
        await link.post([("CONNECT",)], firm=True)
        replicas.asked.clear()
        firm = [link.post([("XADD",), ("BAD",)], firm=True) for _ in range(10)]
        loose = link.post([("GET",)])
        for answers in await asyncio.gather(*firm):
            assert answers[0] == b"OK"
            assert "ERR bad" in str(answers[1])
        assert await loose == [b"OK"]
        assert replicas.asked == [[b"WAIT", b"2", b"500"]]


async def test_too_few_replicas_are_an_error_that_may_pass() -> None:
    async with linked(Replicas(1).talk, wait_replicas=2) as (link, _):
        done, refused = await link.post([("XADD",), ("BAD",)], firm=True)
        with pytest.raises(ConnectionLost, match="1 of 2 replicas have it"):
            good(done, "send")
        assert "ERR bad" in str(refused)


async def test_what_waits_for_replicas_is_lost_with_its_connection() -> None:
    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_command(reader)
        writer.write(b"+OK\r\n")
        await read_command(reader)  # WAIT; and hangs up

    async with linked(talk, wait_replicas=1) as (link, _):
        with pytest.raises(ConnectionLost):
            await link.post([("XADD",)], firm=True)


async def test_nobody_needs_to_wait_any_more_for_what_is_lost_with_its_connection() -> None:
    asked = asyncio.Event()

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_command(reader)
        writer.write(b"+OK\r\n")
        await read_command(reader)  # WAIT, which gets no answer
        asked.set()
        await read_command(reader)

    with no_unhandled_errors():
        async with linked(talk, wait_replicas=1) as (link, _):
            post = link.post([("XADD",)], firm=True)
            await asyncio.wait_for(asked.wait(), 10)
            post.cancel()
        del post
        gc.collect()


@pytest.mark.parametrize(("pool", "warm"), [(1, 0), (1, 5), (4, 0), (4, 2), (4, 9)])
async def test_so_many_connections_are_kept_open(pool: int, warm: int) -> None:
    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            await read_command(reader)
            writer.write(b"+OK\r\n")

    async with linked(talk, pool_size=pool, min_idle_conns=warm) as (link, fake):
        if warm and isinstance(link, Line):
            link.connect()
        await until(lambda: fake.connections == min(pool, warm), "the connections that are kept")
        await asyncio.gather(*[link.call("GET", f"hivewire:{{q{n}}}:x") for n in range(200)])
        assert fake.connections == pool
    lean = lean_link(RedisSettings(pool_size=4, wait_replicas=2))
    assert isinstance(lean, Line)


async def test_all_of_one_queue_goes_over_one_connection_in_order() -> None:
    heard: list[list[list[bytes]]] = []

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        mine: list[list[bytes]] = []
        heard.append(mine)
        while True:
            mine.append(await read_command(reader))
            writer.write(b"+OK\r\n")

    async with linked(talk, pool_size=3) as (link, _):
        batches = [
            [("XADD", f"hivewire:{{q{n % 20}}}:s{n % 8}", n), ("SADD", "hivewire:queues", n)] for n in range(200)
        ]
        answers = await asyncio.gather(*[link.post(batch) for batch in batches])
        assert answers == [[b"OK", b"OK"]] * 200
        link.ring("hivewire:{q1}:bell", 1)
        await link.call("GET", "hivewire:{q1}:x")
    place: dict[bytes, int] = {}
    for number, mine in enumerate(heard):
        order: dict[bytes, list[int]] = {}
        for name, key, *rest in mine:
            queue = key.partition(b"}")[0]
            assert place.setdefault(queue, number) == number
            if name == b"XADD":
                order.setdefault(queue, []).append(int(rest[0]))
        assert all(numbers == sorted(numbers) for numbers in order.values())
    assert len(heard) == 3
