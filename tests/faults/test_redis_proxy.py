"""The link to Redis is cut, half-open, slow or refused while messages flow: the same objects go on, nothing confirmed
is lost, the order holds, and what has an unknown outcome is handled once."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest

from hivewire.engine.protocol import Engine
from hivewire.errors import LeaseLost
from hivewire.testing.conformance.scenario import counts, empty, nothing_for, take, take_one, task
from hivewire.testing.conformance.waiting import count, eventually, until
from hivewire.testing.leaks import nothing_left_behind
from hivewire.testing.proxy import Proxy
from tests.conformance.backends import RedisFabric
from tests.faults.load import KEYS, Load, Seen, survive


class Proxied(RedisFabric):
    """All members come through a proxy; a neighbour goes past it."""

    async def __aenter__(self) -> Proxied:
        self.proxy = await Proxy(self.server.port).__aenter__()
        self.url = f"redis://127.0.0.1:{self.proxy.port}"
        return await super().__aenter__()

    async def __aexit__(self, *raised: object) -> None:
        try:
            await super().__aexit__(*raised)  # type: ignore[arg-type]  # handed on as it came
        finally:
            await self.proxy.__aexit__(None, None, None)

    async def neighbour(self) -> Engine:
        self.url, through = self.server.url, self.url
        try:
            return await self.member()
        finally:
            self.url = through


@pytest.fixture
async def redis(tmp_path: Path) -> AsyncIterator[Proxied]:
    async with nothing_left_behind(), Proxied(tmp_path) as made:
        yield made


async def _reset(proxy: Proxy) -> None:
    await proxy.cut()


async def _ended(proxy: Proxy) -> None:
    await proxy.cut(reset=False)


async def _answers_lost(proxy: Proxy) -> None:
    await proxy.stall(requests=False)
    heard = sum(traffic.answer_bytes for traffic in proxy.connections)
    await until(lambda: sum(traffic.answer_bytes for traffic in proxy.connections) > heard + 500, "answers to lose")
    await proxy.cut()
    await proxy.resume()


async def _requests_lost(proxy: Proxy) -> None:
    await proxy.stall()
    asked = sum(traffic.request_bytes for traffic in proxy.connections)
    await until(lambda: sum(traffic.request_bytes for traffic in proxy.connections) > asked + 500, "requests to lose")
    await proxy.cut()
    await proxy.resume()


async def _slow(proxy: Proxy) -> None:
    await proxy.slow(latency_s=0.03, bytes_per_s=300_000)
    await asyncio.sleep(1.0)  # what is tested is that time passes on a slow link
    await proxy.resume()


async def _half_open(proxy: Proxy) -> None:
    """For longer than the lease."""
    await proxy.stall()
    await asyncio.sleep(2.5)
    await proxy.resume()


async def _refused(proxy: Proxy) -> None:
    await proxy.refuse()
    await proxy.cut()
    await asyncio.sleep(0.5)  # as above, without a server
    await proxy.resume()


SHORT = [_reset, _ended, _answers_lost, _requests_lost, _slow]
Trouble = Callable[[Proxy], Awaitable[None]]


async def _under_load(redis: Proxied, trouble: Trouble, times: int, lease_s: float) -> tuple[Load, Seen]:
    sender, member = await redis.member(lease_s=lease_s), await redis.member(lease_s=lease_s)
    return await survive(sender, member, lambda: trouble(redis.proxy), times)


@pytest.mark.parametrize("trouble", SHORT, ids=lambda trouble: trouble.__name__.strip("_"))
async def test_while_leases_last_everything_is_handled_exactly_once(redis: Proxied, trouble: Trouble) -> None:
    load, seen = await _under_load(redis, trouble, count(4, 60), lease_s=30.0)
    for key in KEYS:
        assert seen.numbers[key] == sorted(set(seen.numbers[key])), key
        assert len(seen.numbers[key]) >= len(load.confirmed[key])


@pytest.mark.parametrize("trouble", [_half_open, _refused], ids=["half-open", "refused"])
async def test_nothing_confirmed_is_lost(redis: Proxied, trouble: Trouble) -> None:
    await _under_load(redis, trouble, count(1, 10), lease_s=1.0)


async def test_a_send_whose_confirmation_was_lost_is_handled_once(redis: Proxied) -> None:
    await redis.protocol.send(task("once", 0))
    await take(redis.protocol, "once", 1)
    await redis.proxy.stall(requests=False)
    answered = sum(traffic.answer_bytes for traffic in redis.proxy.connections)
    sending = asyncio.ensure_future(redis.protocol.send(task("once", 1)))
    await until(lambda: sum(traffic.answer_bytes for traffic in redis.proxy.connections) > answered, "it is stored")
    await redis.proxy.cut()
    await redis.proxy.resume()
    await sending
    (delivery,) = await take(redis.protocol, "once", 1)
    assert delivery.message.content["n"] == 1
    await nothing_for(redis.protocol, "once")
    await empty(redis.protocol, "once")


async def test_an_ack_whose_answer_was_lost_is_done(redis: Proxied) -> None:
    await redis.protocol.send(task("acked", 1))
    delivery = await take_one(redis.protocol, "acked")
    await redis.proxy.stall(requests=False)
    answered = sum(traffic.answer_bytes for traffic in redis.proxy.connections)
    acking = asyncio.ensure_future(delivery.ack())
    await until(lambda: sum(traffic.answer_bytes for traffic in redis.proxy.connections) > answered, "it is stored")
    await redis.proxy.cut()
    await redis.proxy.resume()
    await acking
    await nothing_for(redis.protocol, "acked")
    assert counts(await redis.protocol.depth("acked")) == (0, 0, 0, 0)


async def test_who_is_cut_off_past_its_lease_is_fenced(redis: Proxied) -> None:
    neighbour = await redis.neighbour()
    await redis.protocol.send(task("fenced", 1))
    delivery = await take_one(redis.protocol, "fenced")
    await redis.proxy.stall()
    (again,) = await take(neighbour, "fenced", 1, within_s=redis.lease_s + 4)
    assert again.message.id == delivery.message.id
    await redis.proxy.resume()
    with pytest.raises(LeaseLost):
        await delivery.ack()
    await empty(neighbour, "fenced")


async def test_health_is_red_while_the_link_is_half_open(redis: Proxied) -> None:
    async def ok() -> bool:
        return (await redis.protocol.health()).ok

    await redis.proxy.stall()
    await eventually(ok, False, 5)
    await redis.proxy.resume()
    await eventually(ok, True, 5)


async def test_a_hundred_sends_share_a_round_trip_and_a_lone_one_is_one(redis: Proxied) -> None:
    await redis.protocol.send(task("many", 0))  # now the queue is known
    proxy, lone = redis.proxy, 20
    before = proxy.round_trips
    for n in range(lone):
        await redis.protocol.send(task("many", n))
    alone = proxy.round_trips - before
    await proxy.slow(latency_s=0.1)
    before = proxy.round_trips
    await asyncio.gather(*[redis.protocol.send(task("many", n, key=str(n))) for n in range(100)])
    together = proxy.round_trips - before
    # Leases and upkeep go over the same proxy, a few times a second.
    assert lone <= alone <= lone + 5
    assert 1 <= together <= 5
