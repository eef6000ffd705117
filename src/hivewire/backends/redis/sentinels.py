"""Where the master is, asked of the sentinels before each connection."""

from __future__ import annotations

import msgspec

from hivewire.backends.redis.address import Address
from hivewire.backends.redis.wire import ask_once
from hivewire.errors import BackendError, ConnectionLost
from hivewire.settings import RedisSettings


class Sentinels:
    """A sentinel that answers is asked first the next time."""

    def __init__(self, settings: RedisSettings) -> None:
        self._master = settings.sentinel_master or ""
        self._enter = Address.of(settings)
        to_them = msgspec.structs.replace(
            settings, username=settings.sentinel_username, password=settings.sentinel_password, db=0
        )
        self._sentinels = Address.all_of(to_them)

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
