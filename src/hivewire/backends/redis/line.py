"""One connection that comes back by itself."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence

from hivewire.backends.redis.address import Address, Command, Reply
from hivewire.backends.redis.awaited import Redirect
from hivewire.backends.redis.link import Link
from hivewire.backends.redis.wire import Wire, open_wire
from hivewire.errors import BackendError, Closed, ConnectionLost, HivewireError

Where = Callable[[], Awaitable[Address]]
"""Asked before each connection: where the server is now."""

_AGAIN_S = 0.1


class Line(Link):
    """`stays`: it is kept open even when nothing is asked."""

    def __init__(
        self,
        where: Where,
        name: str,
        prepare: Sequence[Command] = (),
        *,
        retries: int = 0,
        stays: bool = False,
        on_trouble: Callable[[Line, str], None] | None = None,
        redirect: Redirect | None = None,
    ) -> None:
        self._where = where
        self.name = name
        self._prepare = prepare
        self.retries = retries
        self._stays = stays
        self._on_trouble = on_trouble
        """Told of each error that the server answers, and, without a text, of a connection that is not there."""
        self._redirect = redirect
        self._wire: Wire | None = None
        self._address: Address | None = None
        self._backlog: list[tuple[Sequence[Command], asyncio.Future[list[Reply]], bool, float]] = []
        self._connecting: asyncio.Task[None] | None = None
        self._closed = False
        self._has_just_ended = False
        self._has_been = False
        self._wrong: BackendError | None = None

    def post(
        self, commands: Sequence[Command], *, firm: bool = False, beyond_s: float = 0.0
    ) -> asyncio.Future[list[Reply]]:
        wire = self._wire
        if wire is not None and commands:
            asked: asyncio.Future[list[Reply]] = wire.loop.create_future()
            wire.ask(commands, asked, firm=firm, beyond_s=beyond_s)
            return asked
        future: asyncio.Future[list[Reply]] = asyncio.get_running_loop().create_future()
        if not commands:
            future.set_result([])
        elif self._closed:
            future.set_exception(Closed(f"use {self.name}: it is not open"))
        elif self._wrong is not None:
            future.set_exception(self._wrong)
        elif self._has_just_ended:
            # Who lost something in this turn of the loop has not heard of it yet and stands before this one.
            future.set_exception(ConnectionLost("the connection to Redis was lost a moment ago"))
        else:
            self._backlog.append((commands, future, firm, beyond_s))
            self.connect()
        return future

    def post_for(
        self, told: Callable[[asyncio.Future[list[Reply]]], None], commands: Sequence[Command], *, beyond_s: float
    ) -> asyncio.Future[list[Reply]]:
        wire = self._wire
        if wire is None:
            return super().post_for(told, commands, beyond_s=beyond_s)
        asked: asyncio.Future[list[Reply]] = wire.loop.create_future()
        wire.ask(commands, asked, beyond_s=beyond_s, told=told)
        return asked

    def store(
        self, key: str, packed: bytes, channel: str = "", what: int = 0
    ) -> asyncio.Future[BackendError | None] | None:
        return None if self._wire is None else self._wire.store(packed, channel, what)

    def hurry(self) -> None:
        if self._wire is not None:
            self._wire.hurry()

    def ring(self, channel: str, what: int | str) -> None:
        if self._wire is not None:
            self._wire.ring(channel, what)

    async def each(self, commands: Sequence[Command]) -> list[tuple[str, list[Reply]]]:
        return [(self.name, await self.post(commands))]

    def connect(self) -> None:
        """Begin to, unless it is there or on its way."""
        if self._wire is None and self._connecting is None and not self._closed:
            self._connecting = asyncio.get_running_loop().create_task(self._connect(), name=f"connect to {self.name}")

    async def _connect(self) -> None:
        try:
            while True:
                error = await self._dial()
                if error is None:
                    if self._has_been and self.on_return is not None:
                        self.on_return()
                    self._has_been = True
                    return
                self._flush(error)
                if self._on_trouble is not None:
                    self._on_trouble(self, "")
                if not self._stays:
                    return
                await asyncio.sleep(_AGAIN_S)
        finally:
            self._connecting = None
            self._flush(Closed(f"use {self.name}: it was closed"))

    async def _dial(self) -> HivewireError | None:
        self._address = None
        try:
            address = self._address = await self._where()
            wire = await open_wire(address, self._prepare, self._ended, self._errored, self._redirect)
            if address.is_replaced():  # since it was found
                wire.abort("it is the master no more")
                raise ConnectionLost(f"{address} is the master no more")
            self._wire = wire
        except HivewireError as error:
            return error
        return None

    def _flush(self, error: HivewireError) -> None:
        """What waits goes out, or fails."""
        backlog, self._backlog = self._backlog, []
        for commands, future, firm, beyond_s in backlog:
            if future.done():
                continue
            if self._wire is not None:
                self._wire.ask(commands, future, firm=firm, beyond_s=beyond_s)
            else:
                future.set_exception(error)

    def _errored(self, text: str) -> None:
        if self._on_trouble is not None:
            self._on_trouble(self, text)

    def _ended(self, wire: Wire) -> None:
        if self._wire is not wire:
            return
        self._wire = None
        self._has_just_ended = True
        asyncio.get_running_loop().call_soon(self._after_end)
        self._errored("")

    def _after_end(self) -> None:
        self._has_just_ended = False
        if self._stays:
            self.connect()

    def reached(self) -> set[tuple[str, int]]:
        address = self._address  # also asked from another thread
        is_there = self._wire is not None or self._connecting is not None
        return {(address.host, address.port)} if address is not None and is_there else set()

    def cut(self, why: str) -> None:
        if self._wire is not None:
            self._wire.abort(why)
        else:
            self._flush(ConnectionLost(f"the connection to {self.name} was given up: {why}"))

    def refuse(self, why: BackendError) -> None:
        """From now on: this is not the server that we take it for."""
        self._wrong, self._stays = why, False
        self.cut(str(why))

    def retire(self) -> bool:
        """Nothing will be asked here any more. True: something still ends, `close` waits for it."""
        self.cut("nothing is asked there any more")
        self._closed, self._stays = True, False
        if self._connecting is not None:
            self._connecting.cancel()
        return self._connecting is not None

    def fence(self) -> asyncio.Future[list[Reply]] | None:
        """Done when all that was posted before has its outcome; None: it has."""
        if self._wire is None and not self._backlog:
            return None
        return self.post((("PING",),))

    async def close(self) -> None:
        self._closed = True
        if self._connecting is not None:
            connecting = self._connecting
            connecting.cancel()
            await asyncio.gather(connecting, return_exceptions=True)
        if self._wire is not None:
            self._wire.abort("it was closed")
            self._wire = None
            await asyncio.sleep(0)
