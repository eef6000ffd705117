"""From the settings to the link that they mean."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from typing import Final

import msgspec

from hivewire.backends.redis.address import Address, Command, Reply
from hivewire.backends.redis.line import Line, Where
from hivewire.backends.redis.link import Link, good
from hivewire.backends.redis.routing import Router
from hivewire.backends.redis.sentinels import Sentinels
from hivewire.errors import BackendError, ConnectionLost
from hivewire.rules.store_clock import StoreClock
from hivewire.settings import RedisSettings

_AGAIN_S: Final = 0.1


class Apart(Link):
    """What waits for replicas goes by a connection of its own: `WAIT` holds up all that comes behind it."""

    def __init__(self, firm: Link, rest: Link) -> None:
        self._firm = firm
        self._rest = rest
        self.retries = rest.retries
        for link in (firm, rest):
            link.on_return = self._returned

    def _returned(self) -> None:
        if self.on_return is not None:
            self.on_return()

    def post(
        self, commands: Sequence[Command], *, firm: bool = False, beyond_s: float = 0.0
    ) -> asyncio.Future[list[Reply]]:
        return (self._firm if firm else self._rest).post(commands, firm=firm, beyond_s=beyond_s)

    def ring(self, channel: str, what: int | str) -> None:
        self._firm.ring(channel, what)

    async def each(self, commands: Sequence[Command]) -> list[tuple[str, list[Reply]]]:
        return await self._rest.each(commands)

    def addresses(self) -> list[Address]:
        return self._rest.addresses()

    def reached(self) -> set[tuple[str, int]]:
        return self._firm.reached() | self._rest.reached()

    def cut(self, why: str) -> None:
        self._firm.cut(why)
        self._rest.cut(why)

    async def close(self) -> None:
        await self._firm.close()
        await self._rest.close()


def new_link(settings: RedisSettings, prepare: Sequence[Command] = ()) -> Link:
    """For messages: as many connections as the settings say."""
    if settings.wait_replicas:
        return Apart(_link(settings, prepare), _link(settings, prepare))
    return _link(settings, prepare)


def _link(settings: RedisSettings, prepare: Sequence[Command]) -> Link:
    where = one_place(settings)
    if where is not None and settings.pool_size == 1:
        name, stays = str(Address.of(settings)), settings.min_idle_conns > 0
        return Line(where, name, prepare, retries=settings.max_retries, stays=stays, on_trouble=_expect_no_cluster)
    return Router(settings, prepare, fixed=where, lanes=settings.pool_size)


def lean_link(settings: RedisSettings, prepare: Sequence[Command] = ()) -> Link:
    """For leases: no more connections than are needed, and nothing waits for others."""
    lean = msgspec.structs.replace(
        settings, pool_size=1, min_idle_conns=0, max_retries=0, pipeline_size=None, flush_interval_s=0.0
    )
    return _link(lean, prepare)


def place_to_listen(settings: RedisSettings, link: Link) -> Where:
    """Where to hear what is published: any node of a cluster will do, so each time it is the next one."""
    where = one_place(settings)
    if where is not None:
        return where
    turn = 0

    async def next_node() -> Address:
        nonlocal turn
        turn += 1
        addresses = link.addresses()
        return addresses[turn % len(addresses)]

    return next_node


def one_place(settings: RedisSettings) -> Where | None:
    """Where the one server is that holds all; None: a cluster."""
    if settings.sentinel_master is not None:
        return Sentinels(settings)
    if settings.cluster or "," in settings.addr:
        return None
    address = Address.of(settings)

    async def there() -> Address:
        return address

    return there


def _check_kind(settings: RedisSettings, info: Reply) -> None:
    """From `INFO cluster`, if the server tells it: a lone server is not a node of a cluster."""
    if not settings.cluster and isinstance(info, bytes) and b"cluster_enabled:1" in info:
        raise _is_a_node(settings.addr)


def _expect_no_cluster(line: Line, text: str) -> None:
    """For users who may not ask `INFO`."""
    if text.startswith("MOVED"):
        line.refuse(_is_a_node(line.name))


def _is_a_node(name: str) -> BackendError:
    return BackendError(f"use {name}: it is a node of a cluster; set redis.cluster, or ?cluster=true in the URL")


async def reach(link: Link, settings: RedisSettings, clock: StoreClock) -> None:
    """A server that is just being started is waited for, as long as a connection may take."""
    loop = asyncio.get_running_loop()
    until = loop.time() + settings.dial_timeout_s
    while True:
        before = time.time()
        try:
            told, kind = await link.post((("TIME",), ("INFO", "cluster")))
            seconds, micros = good(told, f"connect to {Address.of(settings)}")
            break
        except ConnectionLost:
            if loop.time() >= until:
                raise
        await asyncio.sleep(_AGAIN_S)
    _check_kind(settings, kind)
    clock.told(asked_at=before, store_now=int(seconds) + int(micros) / 1e6, answered_at=time.time())
