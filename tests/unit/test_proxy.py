"""The proxy's own promises: what it relays is whole and in order, and each fault is the one that it says."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from time import perf_counter

import pytest

from hivewire.testing.conformance.waiting import until
from hivewire.testing.leaks import Census
from hivewire.testing.proxy import Proxy


class Echo:
    """A server that answers what it hears, and keeps it."""

    def __init__(self) -> None:
        self.port = 0
        self.heard = bytearray()
        self.ends: list[str] = []
        self.writers: list[asyncio.StreamWriter] = []

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.writers.append(writer)
        try:
            while piece := await reader.read(65536):
                self.heard += piece
                writer.write(piece)
                await writer.drain()
            self.ends.append("end")
        except ConnectionError:
            self.ends.append("reset")
        finally:
            writer.close()


@pytest.fixture
async def echo() -> AsyncIterator[Echo]:
    before = Census.take()
    made = Echo()
    server = await asyncio.start_server(made.serve, "127.0.0.1", 0)
    async with server:
        made.port = server.sockets[0].getsockname()[1]
        yield made
    await before.check()


@pytest.fixture
async def proxy(echo: Echo) -> AsyncIterator[Proxy]:
    async with Proxy(echo.port) as made:
        yield made


class Client:
    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    async def ask(self, said: bytes) -> bytes:
        self.writer.write(said)
        return await self.reader.readexactly(len(said))

    async def ending(self) -> str:
        try:
            return "end" if await self.reader.read() == b"" else "more"
        except ConnectionResetError:
            return "reset"


@pytest.fixture
async def client(proxy: Proxy) -> AsyncIterator[Client]:
    made = Client(*await asyncio.open_connection("127.0.0.1", proxy.port))
    yield made
    made.writer.close()


async def until_ended(echo: Echo) -> str:
    await until(lambda: bool(echo.ends), "the server sees the end")
    return echo.ends[-1]


async def test_much_goes_through_whole_and_is_counted(client: Client, proxy: Proxy) -> None:
    said = bytes(range(256)) * 20_000
    sending = asyncio.ensure_future(client.ask(said))
    assert await sending == said
    (traffic,) = proxy.connections
    assert (traffic.request_bytes, traffic.answer_bytes) == (len(said), len(said))
    assert traffic.is_open


async def test_round_trips_are_bursts_that_were_answered(client: Client, proxy: Proxy) -> None:
    for number in range(1, 6):
        await client.ask(b"ping")
        assert proxy.round_trips == number
    client.writer.write(b"a")
    client.writer.write(b"b")
    await client.reader.readexactly(2)
    assert proxy.round_trips == 6


@pytest.mark.parametrize(("reset", "seen"), [(True, "reset"), (False, "end")])
async def test_a_cut_is_seen_on_both_sides_and_new_connections_are_served(
    client: Client, proxy: Proxy, echo: Echo, reset: bool, seen: str
) -> None:
    await client.ask(b"one")
    await proxy.cut(reset=reset)
    assert await client.ending() == seen
    assert await until_ended(echo) == seen
    assert not proxy.connections[0].is_open
    reader, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
    assert await Client(reader, writer).ask(b"two") == b"two"
    writer.close()


async def test_a_client_that_leaves_is_told_to_the_server(client: Client, echo: Echo) -> None:
    await client.ask(b"one")
    client.writer.close()
    assert await until_ended(echo) == "end"


async def test_a_server_that_leaves_is_told_to_the_client(client: Client, echo: Echo) -> None:
    await client.ask(b"one")
    echo.writers[0].close()
    assert await client.ending() == "end"


async def test_half_open_accepts_and_forwards_nothing_until_it_resumes(
    client: Client, proxy: Proxy, echo: Echo
) -> None:
    await client.ask(b"one")
    await proxy.stall()
    client.writer.write(b"two")
    reader, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
    writer.write(b"three")
    await until(lambda: sum(t.request_bytes for t in proxy.connections) == len("onetwothree"), "the proxy has all")
    assert bytes(echo.heard) == b"one"
    await proxy.resume()
    assert await client.reader.readexactly(3) == b"two"
    assert await reader.readexactly(5) == b"three"
    writer.close()


async def test_answers_alone_are_held_back_and_lost_by_a_cut(client: Client, proxy: Proxy, echo: Echo) -> None:
    await proxy.stall(requests=False)
    client.writer.write(b"heard")
    await until(lambda: proxy.connections[0].answer_bytes == 5, "the proxy has the answer")
    assert bytes(echo.heard) == b"heard"
    await proxy.cut()
    assert await client.ending() == "reset"


async def test_held_back_bytes_are_bounded(client: Client, proxy: Proxy) -> None:
    await proxy.stall()
    said = b"x" * 8_000_000
    sending = asyncio.ensure_future(client.ask(said))
    await asyncio.wait({sending}, timeout=0.2)
    assert proxy.connections[0].request_bytes < 2_000_000
    await proxy.resume()
    assert await sending == said


async def test_a_slow_link_takes_its_time_and_keeps_the_order(client: Client, proxy: Proxy) -> None:
    await proxy.slow(latency_s=0.05)
    began = perf_counter()
    client.writer.write(b"1")
    await asyncio.sleep(0.01)
    client.writer.write(b"2")
    assert await client.reader.readexactly(2) == b"12"
    assert perf_counter() - began >= 0.1
    await proxy.slow(bytes_per_s=100_000)
    began = perf_counter()
    await client.ask(b"x" * 10_000)
    assert perf_counter() - began >= 0.1


async def test_refused_until_it_resumes_on_the_same_port(proxy: Proxy) -> None:
    port = proxy.port
    await proxy.refuse()
    with pytest.raises(ConnectionRefusedError):
        await asyncio.open_connection("127.0.0.1", port)
    await proxy.resume()
    assert proxy.port == port
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    assert await Client(reader, writer).ask(b"x") == b"x"
    writer.close()


async def test_a_server_that_is_not_there_ends_the_connection() -> None:
    """Its port is kept: a free one might be the proxy's own, which would be connected to itself without end."""
    with socket.socket() as kept:
        kept.bind(("127.0.0.1", 0))
        async with Proxy(kept.getsockname()[1]) as proxy:
            reader, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
            assert await Client(reader, writer).ending() in ("reset", "end")
            writer.close()
