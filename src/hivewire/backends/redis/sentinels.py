"""Where the master is, asked of the sentinels before each connection; and when it is another one."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Set
from typing import Final

import msgspec

from hivewire.backends.redis.address import Address, replaced
from hivewire.backends.redis.ears import Ears
from hivewire.backends.redis.wire import ask_once
from hivewire.errors import BackendError, ConnectionLost
from hivewire.settings import RedisSettings

_SWITCH: Final = "+switch-master"
_AGAIN_S: Final = 0.5


def _to_them(settings: RedisSettings) -> RedisSettings:
    return msgspec.structs.replace(
        settings, username=settings.sentinel_username, password=settings.sentinel_password, db=0
    )


class Sentinels:
    """A sentinel that answers is asked first the next time."""

    def __init__(self, settings: RedisSettings) -> None:
        self._master = settings.sentinel_master or ""
        self._enter = Address.of(settings)
        self._sentinels = Address.all_of(_to_them(settings))

    async def __call__(self) -> Address:
        said: list[str] = []
        may_pass = False
        for sentinel in tuple(self._sentinels):
            try:
                found = await ask_once(sentinel, ("SENTINEL", "GET-MASTER-ADDR-BY-NAME", self._master))
                if found is None:
                    said.append(f"the sentinel at {sentinel.host}:{sentinel.port} knows no master {self._master!r}")
                    continue
                master = self._enter.at(found[0].decode(), int(found[1]))
                if master.is_replaced():
                    raise ConnectionLost(f"{master} is the master no more")
                role = await ask_once(master, ("ROLE",))
                if role[0] != b"master":
                    raise ConnectionLost(f"{master} is to be the master and is not yet: {role[0].decode()}")
            except BackendError as error:
                may_pass = may_pass or error.retryable
                said.append(str(error))
                continue
            self._sentinels.remove(sentinel)
            self._sentinels.insert(0, sentinel)
            return master
        text = f"find the master {self._master!r}: {'; '.join(said)}"
        if may_pass:
            raise ConnectionLost(text)
        raise BackendError(f"{text}; check redis.sentinel_master and the addresses")


class Switches:
    """Hears from a sentinel that another server is the master now. The old one may only have stood still: until a
    sentinel reaches it, some ten seconds later, it goes on confirming what will be lost."""

    def __init__(
        self, settings: RedisSettings, reached: Callable[[], Set[tuple[str, int]]], switched: Callable[[], None]
    ) -> None:
        """`reached`: the servers that connections go to."""
        self._settings = settings
        self._sentinels = Address.all_of(_to_them(settings))
        self._master = Sentinels(settings)
        self._reached = reached
        self._switched = switched
        self._asking: asyncio.Task[None] | None = None
        self._ears = Ears(_to_them(settings), self._next)
        self._ears.listen(_SWITCH, self._heard)

    async def _next(self) -> Address:
        self._sentinels.append(self._sentinels.pop(0))
        return self._sentinels[-1]

    def _heard(self, what: bytes | None) -> None:
        if what is None:
            self._stop_asking()
            self._asking = asyncio.get_running_loop().create_task(self._ask(), name="ask who is the master")
            return
        name, host, port, *_ = what.decode().split(" ")
        if name == self._settings.sentinel_master:
            self._stop_asking()  # it may just be told of the old one
            self._left((host, int(port)))

    async def _ask(self) -> None:
        """Whether one was missed, while no sentinel was listened to."""
        while True:
            before = self._reached()
            try:
                master = await self._master()
                break
            except BackendError as error:
                if not error.retryable:
                    return  # who asks for a connection is told
            await asyncio.sleep(_AGAIN_S)
        self._left(*((before & self._reached()) - {(master.host, master.port)}))

    def _left(self, *places: tuple[str, int]) -> None:
        for host, port in places:
            replaced(self._settings, host, port)
        if places:
            self._switched()

    def _stop_asking(self) -> None:
        if self._asking is not None:
            self._asking.cancel()

    async def close(self) -> None:
        await self._ears.close()
        if self._asking is not None:
            self._stop_asking()
            await asyncio.wait([self._asking])
