"""What others publish: one connection that listens for all of this process."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

import hiredis

from hivewire.backends.redis.address import Address, Reply, pack
from hivewire.backends.redis.link import good
from hivewire.errors import BackendError, Closed, ConnectionLost

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

    def __init__(self, address: Address) -> None:
        self._address = address
        self._heard: dict[bytes, list[Heard]] = {}
        self._greeted: list[Reply] = []
        self._confirmed: dict[bytes, asyncio.Future[None]] = {}
        self._stream: _Stream | None = None
        self._task: asyncio.Task[None] | None = None
        self._closed = False

    async def subscribe(self, channel: str, heard: Heard) -> None:
        """From now on, when this returns."""
        if self._closed:
            raise Closed(f"listen at {self._address}: it was closed")
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
        try:
            async with asyncio.timeout(self._address.settings.dial_timeout_s):
                await asyncio.shield(confirmed)
        except TimeoutError:
            self.unsubscribe(channel, heard)
            raise ConnectionLost(f"listen at {self._address}: no answer") from None

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
            except (BackendError, OSError, TimeoutError) as error:
                log.debug("cannot listen yet", extra={"error": str(error)})
            await asyncio.sleep(_AGAIN_S)

    async def _listen(self) -> None:
        settings, loop = self._address.settings, asyncio.get_running_loop()
        opening: asyncio.Queue[Reply] = asyncio.Queue()
        greeting = self._address.greeting()
        stream: _Stream | None = None
        try:
            async with asyncio.timeout(settings.dial_timeout_s):
                said = self._said
                _, stream = await loop.create_connection(
                    lambda: _Stream(lambda reply: said(reply, opening)),
                    self._address.host,
                    self._address.port,
                    ssl=self._address.tls(),
                )
                for command in greeting:
                    stream.write(*map(str, command))
                    good(await opening.get(), f"listen at {self._address}")
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
        limit_s = self._address.settings.read_timeout_s + 2 * _PROBE_EACH_S
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

    async def close(self) -> None:
        self._closed = True
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            self._task = None
        self._heard.clear()
