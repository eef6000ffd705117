"""A real Redis that is killed, frozen or emptied under load: the same objects go on, nothing confirmed is lost."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from hivewire.backends.redis import RedisBackend
from hivewire.backends.redis.consumer import RedisConsumer
from hivewire.delivery import Delivery
from hivewire.errors import BackendError, SettingsError, TimedOut
from hivewire.factory import connect
from hivewire.testing.conformance.journal import first_seen, overlapping
from hivewire.testing.conformance.scenario import counts, empty, number, send_numbered, serving, take, task
from hivewire.testing.conformance.waiting import count, eventually, until
from hivewire.testing.servers import RedisServer
from tests.conformance.backends import RedisFabric, start
from tests.faults.load import KEYS, Seen, survive


async def _killed(server: RedisServer) -> None:
    server.kill()
    await asyncio.sleep(0.2)  # what is tested is that time passes without a server
    server.start()


async def _frozen(server: RedisServer) -> None:
    """For longer than the lease and the time-out of an answer."""
    server.freeze()
    await asyncio.sleep(4.5)
    server.thaw()


@pytest.mark.parametrize(("trouble", "times"), [(_killed, count(3, 30)), (_frozen, 1)], ids=["kill -9", "SIGSTOP"])
async def test_nothing_confirmed_is_lost(
    redis: RedisFabric, trouble: Callable[[RedisServer], Awaitable[None]], times: int
) -> None:
    await survive(redis.protocol, await redis.member(), lambda: trouble(redis.server), times)


async def test_workers_and_server_are_killed_in_turn(redis: RedisFabric) -> None:
    settings = {"max_attempts": 50}
    workers = [await redis.worker("both", concurrency=4, settings=settings) for _ in range(3)]
    each = count(30, 400)
    await send_numbered(redis.protocol, "both", each, keys=KEYS, steps=[("sleep", 0.03)])
    dead = []
    for _ in range(count(2, 10)):
        handled = len(redis.journal.ends("both"))
        await until(lambda handled=handled: len(redis.journal.ends("both")) > handled + 20, "work goes on")  # type: ignore[misc]
        redis.restart_store()
        victim = workers.pop(0)
        victim.kill()
        await victim.ended()
        dead.append(victim.name)
        workers.append(await redis.worker("both", concurrency=4, settings=settings))
    await empty(redis.protocol, "both", within_s=40)
    starts = redis.journal.starts("both")
    assert {key: sorted(set(numbers)) for key, numbers in first_seen(starts).items()} == {
        key: list(range(each)) for key in KEYS
    }
    assert all(numbers == sorted(numbers) for numbers in first_seen(starts).values())
    assert overlapping(redis.journal.entries("start", "end", agent="both"), dead=dead) == []


async def test_after_everything_was_deleted_the_same_objects_go_on(redis: RedisFabric) -> None:
    member, seen = await redis.member(), Seen()
    async with serving(member, "flushed", seen):
        await redis.protocol.send(task("flushed", 0, key="k0"))
        await until(lambda: seen.total == 1, "the first one")
        assert redis.server.ask("FLUSHALL") == b"+OK"
        await redis.protocol.send(task("flushed", 1, key="k1"))
        await until(lambda: seen.total == 2, "the next one", 5)
        await redis.protocol.subscribe("later", ["task"])
        await eventually(lambda: _known(redis, "flushed", "later"), True, 5)
    await redis.protocol.send(task("later", 2))
    await take(redis.protocol, "later", 1)


async def _known(redis: RedisFabric, *agents: str) -> bool:
    return set(agents) <= set(await redis.protocol.agents())


async def test_a_server_that_forgets_its_scripts_is_told_again(redis: RedisFabric) -> None:
    await redis.protocol.send(task("told", 1))
    assert redis.server.ask("SCRIPT", "FLUSH") == b"+OK"
    await take(redis.protocol, "told", 1)


async def test_who_looks_at_a_server_that_has_forgotten_its_scripts_is_answered(redis: RedisFabric) -> None:
    await redis.protocol.send(task("looked", 1, ttl_s=600))
    for _ in range(3):
        assert redis.server.ask("SCRIPT", "FLUSH") == b"+OK"
        assert counts(await redis.protocol.depth("looked")) == (1, 0, 0, 0)
        assert redis.server.ask("SCRIPT", "FLUSH") == b"+OK"
        assert await redis.protocol.dead_letters("looked") == []


async def test_first_requests_are_over_in_their_time_while_the_server_stands_still(redis: RedisFabric) -> None:
    member = await redis.member()
    await member.send(task("oracle", 0))

    async def answer(delivery: Delivery) -> None:
        if delivery.message.metadata.get("reply_to"):
            await redis.protocol.reply(delivery.message, number(delivery))

    async with serving(redis.protocol, "oracle", answer):
        redis.server.freeze()
        try:
            asked = [member.request(task("oracle", n), timeout_s=0.5) for n in (1, 2, 3)]
            outcomes = await asyncio.gather(*asked, return_exceptions=True)
        finally:
            redis.server.thaw()
        assert [type(outcome) for outcome in outcomes] == [TimedOut] * 3
        assert (await member.request(task("oracle", 4), timeout_s=20)).content == 4


async def test_health_is_red_while_the_server_stands_still(redis: RedisFabric) -> None:
    async def ok() -> bool:
        return (await redis.protocol.health()).ok

    redis.server.freeze()
    try:
        await eventually(ok, False, 5)
    finally:
        redis.server.thaw()
    await eventually(ok, True, 5)


async def test_three_members_share_and_a_dead_one_s_part_is_taken_over(redis: RedisFabric) -> None:
    """2 to 3 of 8 shards each, within 5 s of a join, a leave, and a death after its lease."""

    def shares() -> list[int]:
        backends = [member.backend for member in members]
        owned = []
        for backend in backends:
            assert isinstance(backend, RedisBackend)
            owned.append(sum(len(part.held) for part in backend.consumers if isinstance(part, RedisConsumer)))
        return sorted(owned)

    async def shared() -> list[int]:
        return shares()

    members = [await redis.member() for _ in range(3)]
    async with serving(members[0], "fair", Seen()), serving(members[1], "fair", Seen()):
        await eventually(shared, [0, 4, 4], 5)
        async with serving(members[2], "fair", Seen()):
            await eventually(shared, [2, 3, 3], 5)
        await eventually(shared, [0, 4, 4], 5)
        worker = await redis.worker("fair")
        await until(lambda: shares() in ([0, 2, 3], [0, 3, 3]), "the process has its share", 5)
        worker.kill()
        await worker.ended()
        await eventually(shared, [0, 4, 4], redis.lease_s + 5)


@pytest.mark.parametrize(
    ("options", "durability"),
    [
        (["--appendonly", "no"], "volatile"),
        (["--appendfsync", "everysec"], "process"),
        (["--appendfsync", "always"], "disk"),
    ],
)
async def test_what_the_server_keeps_is_told(
    tmp_path: Path, options: list[str], durability: str, caplog: pytest.LogCaptureFixture
) -> None:
    server = RedisServer(tmp_path / "redis", *options)
    start(server)
    try:
        async with connect(server.url) as protocol:
            health = await protocol.health()
        assert health.ok
        assert health.durability == durability
        assert bool(health.warnings) is (durability != "disk")
        assert ("THIS REDIS LOSES MESSAGES" in caplog.text) is (durability == "volatile")
        if durability == "volatile":
            with pytest.raises(SettingsError, match="require_durable"):
                await connect(server.url, require_durable=True).send(task("firm"))
    finally:
        server.kill()


async def test_a_password_is_needed_and_its_lack_is_one_sentence(tmp_path: Path) -> None:
    server = RedisServer(tmp_path / "redis", "--requirepass", "open sesame")
    start(server)
    try:
        async with connect(server.url, redis={"password": "open sesame"}) as protocol:
            await protocol.send(task("locked", 1))
            assert counts(await protocol.depth("locked")) == (1, 0, 0, 0)
            await take(protocol, "locked", 1)
        for refused in (connect(server.url), connect(server.url, redis={"password": "open barley"})):
            with pytest.raises(BackendError, match=r"NOAUTH|WRONGPASS"):
                await refused.send(task("locked"), timeout_s=1)
            await refused.close()
    finally:
        server.kill()


async def test_who_begins_while_the_server_is_being_started_waits_for_it(tmp_path: Path) -> None:
    server = RedisServer(tmp_path / "redis")
    start(server)
    server.kill()
    protocol = connect(server.url, redis={"dial_timeout_s": 30.0})
    async with asyncio.TaskGroup() as group:
        sent = group.create_task(protocol.send(task("early", 1)))
        await asyncio.sleep(0.5)  # what is tested is that time passes without a server
        assert not sent.done()
        server.start()
        await sent
        await take(protocol, "early", 1)
    await protocol.close()
    server.kill()


async def test_who_begins_without_a_server_is_told_when_the_time_to_connect_is_over(tmp_path: Path) -> None:
    server = RedisServer(tmp_path / "redis")
    start(server)
    server.kill()
    protocol, loop = connect(server.url, redis={"dial_timeout_s": 0.5}), asyncio.get_running_loop()
    began = loop.time()
    with pytest.raises(BackendError, match=f"connect to 127.0.0.1:{server.port}"):
        await protocol.send(task("early", 1))
    assert loop.time() - began >= 0.5
    server.start()
    await protocol.send(task("early", 1))  # the same object
    await take(protocol, "early", 1)
    await protocol.close()
    server.kill()


async def test_something_else_on_the_port_is_a_typed_error() -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(100)
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    async with server:
        stranger = connect(f"redis://127.0.0.1:{port}")
        with pytest.raises(BackendError):
            await stranger.send(task("nobody"), timeout_s=1)
        await stranger.close()
