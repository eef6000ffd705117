"""What is saved on the way through Redis changes no meaning: one script for many shards, replies without a script."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Hashable, Mapping, Sequence, Set

import pytest

from hivewire.backend import Fetched, Member, Ownership, Saved
from hivewire.backends.redis import RedisBackend
from hivewire.backends.redis.address import Command, Reply
from hivewire.backends.redis.keys import base
from hivewire.backends.redis.opening import new_link
from hivewire.errors import Closed
from hivewire.settings import RedisSettings
from hivewire.testing.conformance.scenario import send_numbered, take_one, task
from tests.conformance.backends import RedisFabric

Told = Callable[[asyncio.Future[list[Reply]]], None]


class Owner(Ownership):
    def __init__(self) -> None:
        self.gone: set[int] = set()

    async def gained(self, shard: int, token: int, saved: bytes, settled: Sequence[Hashable] = ()) -> None:
        pass

    async def losing(self, shards: Set[int], within_s: float) -> Mapping[int, Saved]:
        return {}

    def lost(self, shards: Set[int]) -> None:
        self.gone |= shards


async def test_one_command_settles_all_shards_and_a_stolen_one_alone_is_refused(
    redis: RedisFabric, monkeypatch: pytest.MonkeyPatch
) -> None:
    await send_numbered(redis.protocol, "wide", 2, keys=[f"k{n}" for n in range(24)])
    member = await redis.member()
    backend = member.backend
    assert isinstance(backend, RedisBackend)
    owner = Owner()
    consumer = await backend.consume("wide", Member(name="m", lease_s=30), owner)
    taken: list[Fetched] = []
    while len(taken) < 48:
        taken += await consumer.fetch(1_000, 1.0)
    shards = {fetched.shard for fetched in taken}
    assert len(shards) > 2
    stolen = min(shards)
    link = new_link(RedisSettings(addr=f"127.0.0.1:{redis.server.port}"))
    await link.call("HSET", f"{base('wide')}o", f"o{stolen}", "somebody else")
    await link.close()
    posted: list[Command] = []
    post = backend.link.post_for

    def noting(told: Told, commands: Sequence[Command], *, beyond_s: float) -> asyncio.Future[list[Reply]]:
        posted.extend(commands)
        return post(told, commands, beyond_s=beyond_s)

    monkeypatch.setattr(backend.link, "post_for", noting)
    refused = await consumer.settle(taken)
    monkeypatch.undo()
    assert len(posted) == 1
    assert refused == [fetched for fetched in taken if fetched.shard == stolen]
    assert owner.gone == {stolen}
    depth = await redis.protocol.depth("wide")
    assert depth.ready + depth.in_flight == len(refused)
    await consumer.close()


async def test_a_reply_to_a_mailbox_that_was_there_a_moment_ago_makes_no_new_one(redis: RedisFabric) -> None:
    caller = await redis.member()
    for n in range(3):  # the second one goes without a script
        asked = asyncio.create_task(caller.request(task("oracle", n), timeout_s=30))
        delivery = await take_one(redis.protocol, "oracle")
        if n == 2:
            await caller.close()
            with pytest.raises(Closed):
                await asked
        await redis.protocol.reply(delivery.message, {"n": n})
        await delivery.ack()
        if n < 2:
            assert (await asked).content == {"n": n}
    assert redis.protocol.metrics().late_replies == 1
    link = new_link(RedisSettings(addr=f"127.0.0.1:{redis.server.port}"))
    assert await link.call("KEYS", "hivewire:{~reply/*") == []
    await link.close()
