"""What others publish: one connection that listens for all of this process."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

import hiredis

from hivewire.backends.redis.address import Reply, pack
from hivewire.backends.redis.line import Where
from hivewire.backends.redis.link import good
from hivewire.errors import Closed, ConnectionLost, HivewireError
from hivewire.settings import RedisSettings

log = logging.getLogger(__name__)

Heard = Callable[[bytes | None], None]
"""Called with what was published; with None when something may have been missed."""

_AGAIN_S = 0.1
_PROBE_EACH_S = 2.0


class _Stream(asyncio.Protocol):
    """A connection in the listening state: whatever arrives is handed on."""

    def __init__(self, said: Callable[[Reply], None]) -> None:
        self._said = said
        self._reader = hiredis.Reader()
        self.transport: asyncio.Transport | None = None
        self.ended = asyncio.Event()
        self.heard_at = asyncio.get_running_loop().time()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport  # type: ignore[assignment]  # uvloop's is one that does not say so

    def data_received(self, data: bytes) -> None:
        self.heard_at = asyncio.get_running_loop().time()
        self._reader.feed(data)
        try:
            while (said := self._reader.gets()) is not False:
                self._said(said)
        except hiredis.ProtocolError:
            self.abort()

    def connection_lost(self, error: Exception | None) -> None:
        self.ended.set()

    def write(self, *command: str) -> None:
        if self.transport is not None:
            self.transport.write(pack(command))

    def abort(self) -> None:
        if self.transport is not None:
            self.transport.abort()


class Ears:
    """Subscriptions that outlive the connection."""

    def __init__(self, settings: RedisSettings, where: Where) -> None:
        self._settings = settings
        self._where = where
        self._heard: dict[bytes, list[Heard]] = {}
        self._greeted: list[Reply] = []
        self._confirmed: dict[bytes, asyncio.Future[None]] = {}
        self._stream: _Stream | None = None
        self._trouble = ""
        self._task: asyncio.Task[None] | None = None
        self._closed = False

    async def subscribe(self, channel: str, heard: Heard) -> None:
        """From now on, when this returns."""
        if self._closed:
            raise Closed(f"listen at {self._settings.addr}: it was closed")
        confirmed = self.listen(channel, heard)
        try:
            async with asyncio.timeout(self._settings.dial_timeout_s):
                await asyncio.shield(confirmed)
        except TimeoutError:
            self.unsubscribe(channel, heard)
            raise ConnectionLost(f"listen at {self._settings.addr}: {self._trouble or 'no answer'}") from None

    def listen(self, channel: str, heard: Heard) -> asyncio.Future[None]:
        """`heard` is told, with None, as soon as it hears what is published there."""
        name = channel.encode()
        listeners = self._heard.setdefault(name, [])
        listeners.append(heard)
        if self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._run(), name="listen to Redis")
        confirmed = self._confirmed.get(name)
        if confirmed is None:
            confirmed = self._confirmed[name] = asyncio.get_running_loop().create_future()
            if self._stream is not None:
                self._stream.write("SUBSCRIBE", channel)
        return confirmed

    def unsubscribe(self, channel: str, heard: Heard) -> None:
        name = channel.encode()
        listeners = self._heard.get(name, [])
        if heard in listeners:
            listeners.remove(heard)
        if not listeners and name in self._heard:
            del self._heard[name]
            self._confirmed.pop(name, None)
            if self._stream is not None:
                self._stream.write("UNSUBSCRIBE", channel)

    async def _run(self) -> None:
        while True:
            try:
                await self._listen()
            except (HivewireError, OSError, TimeoutError) as error:
                self._trouble = str(error)
                log.debug("cannot listen yet", extra={"error": str(error)})
            await asyncio.sleep(_AGAIN_S)

    async def _listen(self) -> None:
        loop = asyncio.get_running_loop()
        opening: asyncio.Queue[Reply] = asyncio.Queue()
        stream: _Stream | None = None
        try:
            async with asyncio.timeout(self._settings.dial_timeout_s):
                address = await self._where()
                said = self._said
                _, stream = await loop.create_connection(
                    lambda: _Stream(lambda reply: said(reply, opening)),
                    address.host,
                    address.port,
                    ssl=address.tls(),
                )
                for command in address.greeting():
                    stream.write(*map(str, command))
                    good(await opening.get(), f"listen at {address}")
            self._stream = stream
            for name, confirmed in list(self._confirmed.items()):
                if confirmed.done():
                    self._confirmed[name] = loop.create_future()
                stream.write("SUBSCRIBE", name.decode())
            await self._watch(stream)
        finally:
            self._stream = None
            if stream is not None:
                stream.abort()

    async def _watch(self, stream: _Stream) -> None:
        """Until the connection ends. A server that says nothing to a probe ends it, too."""
        limit_s = self._settings.read_timeout_s + 2 * _PROBE_EACH_S
        while not stream.ended.is_set():
            stream.write("PING")
            try:
                async with asyncio.timeout(_PROBE_EACH_S):
                    await stream.ended.wait()
            except TimeoutError:
                await asyncio.sleep(0)  # after a loop that stood still, what arrived is read first
                if asyncio.get_running_loop().time() - stream.heard_at > limit_s:
                    return

    def _said(self, said: Reply, opening: asyncio.Queue[Reply]) -> None:
        if not isinstance(said, list) or len(said) < 3:
            if self._stream is None:
                opening.put_nowait(said)
            elif isinstance(said, Exception):
                self._trouble = str(said)
            return
        kind, name, what = said
        if kind == b"message":
            for heard in tuple(self._heard.get(name, ())):
                heard(what)
        elif kind == b"subscribe":
            confirmed = self._confirmed.get(name)
            if confirmed is not None and not confirmed.done():
                confirmed.set_result(None)
            for heard in tuple(self._heard.get(name, ())):
                heard(None)

    def move(self) -> None:
        """Listen on a new connection: the server may be another one now."""
        if self._stream is not None:
            self._stream.abort()

    async def close(self) -> None:
        self._closed = True
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            self._task = None
        self._heard.clear()
