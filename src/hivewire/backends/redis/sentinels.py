"""Where the master is, asked of the sentinels before each connection; and when it is another one."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

import msgspec

from hivewire.backends.redis.address import Address
from hivewire.backends.redis.ears import Ears
from hivewire.backends.redis.wire import ask_once
from hivewire.errors import BackendError, ConnectionLost
from hivewire.settings import RedisSettings

_SWITCH: Final = "+switch-master"
_HEARSAY_S: Final = 10.0
"""By then every sentinel has heard of a change, and the old master, too."""

_replaced: dict[tuple[str, str], tuple[str, int, float]] = {}
"""By sentinels and name: who was the master until a moment ago, and for how long that counts. Another sentinel may
still name it, and it may still take itself for the master."""


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
        self._name = settings.addr, self._master

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
                *place, until = _replaced.get(self._name, ("", 0, 0.0))
                if place == [master.host, master.port] and time.monotonic() < until:
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

    def __init__(self, settings: RedisSettings, switched: Callable[[], None]) -> None:
        self._name = settings.addr, settings.sentinel_master or ""
        self._sentinels = Address.all_of(_to_them(settings))
        self._switched = switched
        self._has_heard = False
        self._ears = Ears(_to_them(settings), self._next)
        self._ears.listen(_SWITCH, self._heard)

    async def _next(self) -> Address:
        self._sentinels.append(self._sentinels.pop(0))
        return self._sentinels[-1]

    def _heard(self, what: bytes | None) -> None:
        if what is not None:
            name, host, port, *_ = what.decode().split(" ")
            if name != self._name[1]:
                return
            _replaced[self._name] = host, int(port), time.monotonic() + _HEARSAY_S
        elif not self._has_heard:
            self._has_heard = True
            return
        self._switched()  # or that was missed

    async def close(self) -> None:
        await self._ears.close()
