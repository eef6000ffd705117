"""A TCP relay in front of a real server, to break the link between a client and it in every way.

    async with Proxy(server.port) as proxy:
        protocol = connect(f"redis://127.0.0.1:{proxy.port}")
        await proxy.cut()

Whoever is led to another address goes past it: a Kafka broker names its `advertised.listeners` to each client, so
make the proxy first (the server need not run yet) and have the broker advertise `proxy.port`; a Redis Cluster needs
`cluster-announce-port`. PostgreSQL and a single Redis need nothing.
"""

from __future__ import annotations

import asyncio
import socket
import struct
from collections import deque
from types import TracebackType
from typing import Self

_MOST_HELD_BYTES = 256 * 1024
"""So much is held back of one direction before the proxy reads no more."""
_RESET = struct.pack("ii", 1, 0)


class Traffic:
    """What went over one connection so far. A round trip is a burst of requests and the first answer after it:
    requests that leave together, or overlap, share one."""

    def __init__(self) -> None:
        self.request_bytes = 0
        self.answer_bytes = 0
        self.round_trips = 0
        self.is_open = True
        self._asked = False

    def asked(self, size: int) -> None:
        self.request_bytes += size
        self._asked = True

    def answered(self, size: int) -> None:
        self.answer_bytes += size
        if self._asked:
            self._asked = False
            self.round_trips += 1


class _Way:
    """One direction of one connection: what arrived leaves in its order, each piece when its time has come."""

    def __init__(self, proxy: Proxy, source: _End, target: _End) -> None:
        self._proxy = proxy
        self._source = source
        self._target = target
        self._held: deque[tuple[float, bytes]] = deque()
        self._held_bytes = 0
        self._free_at = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self._ended = False
        self.is_stalled = False

    def arrived(self, piece: bytes) -> None:
        proxy, now = self._proxy, self._proxy.now()
        due = now + proxy.latency_s
        if proxy.bytes_per_s:
            self._free_at = max(self._free_at, now) + len(piece) / proxy.bytes_per_s
            due = max(due, self._free_at)
        if self._held:  # never before what arrived earlier
            due = max(due, self._held[-1][0])
        self._held.append((due, piece))
        self._held_bytes += len(piece)
        self.pump()

    def ended(self) -> None:
        """Nothing more comes: the other side is told after the last piece."""
        self._ended = True
        self.pump()

    def pump(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        now = self._proxy.now()
        while self._held and not self.is_stalled and self._held[0][0] <= now:
            piece = self._held.popleft()[1]
            self._held_bytes -= len(piece)
            self._target.write(piece)
        if self._held and not self.is_stalled:
            self._timer = self._proxy.loop.call_at(self._held[0][0], self.pump)
        self._source.read_on(self._held_bytes < _MOST_HELD_BYTES and not self._target.is_full)
        if self._ended and not self._held:
            self._target.close()

    def stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._held.clear()


class _End(asyncio.Protocol):
    """The proxy's end of the connection to the client, or of that to the server."""

    def __init__(self, link: _Link, *, is_client: bool) -> None:
        self._link = link
        self._is_client = is_client
        self._transport: asyncio.Transport | None = None
        self._unsent: list[bytes] = []
        self._is_reading = True
        self.is_full = False
        self.is_lost = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport  # type: ignore[assignment]  # uvloop's is one that does not say so
        for piece in self._unsent:
            self.write(piece)
        self._unsent.clear()
        if not self._is_reading:
            transport.pause_reading()  # type: ignore[attr-defined]  # as above
        if self._is_client:
            self._link.begin()

    def data_received(self, data: bytes) -> None:
        self._link.arrived(data, from_client=self._is_client)

    def connection_lost(self, error: Exception | None) -> None:
        self.is_lost = True
        self._link.lost(from_client=self._is_client, was_reset=error is not None)

    def pause_writing(self) -> None:
        self.is_full = True
        self._link.pump()

    def resume_writing(self) -> None:
        self.is_full = False
        self._link.pump()

    def write(self, piece: bytes) -> None:
        if self._transport is None:
            self._unsent.append(piece)
        elif not self.is_lost:
            self._transport.write(piece)

    def read_on(self, wanted: bool) -> None:
        if wanted == self._is_reading or self.is_lost:
            return
        self._is_reading = wanted
        if self._transport is None:
            return
        if wanted:
            self._transport.resume_reading()
        else:
            self._transport.pause_reading()

    def close(self) -> None:
        if self._transport is not None:
            self._transport.close()

    def reset(self) -> None:
        if self._transport is None:
            return
        opened = self._transport.get_extra_info("socket")
        if opened is not None and not self.is_lost:
            opened.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        self._transport.abort()


class _Link:
    """One connection through the proxy: two ends, two ways."""

    def __init__(self, proxy: Proxy) -> None:
        self._proxy = proxy
        self.traffic = Traffic()
        self.client = _End(self, is_client=True)
        self.server = _End(self, is_client=False)
        self.requests = _Way(proxy, self.client, self.server)
        self.answers = _Way(proxy, self.server, self.client)
        self._dialling: asyncio.Task[None] | None = None

    def begin(self) -> None:
        self._proxy.add(self)
        self._dialling = self._proxy.loop.create_task(self._dial(), name="dial for the proxy")

    async def _dial(self) -> None:
        try:
            await self._proxy.loop.create_connection(lambda: self.server, self._proxy.host, self._proxy.target_port)
        except OSError:
            self.cut(reset=True)  # nobody is there: the client sees its connection end

    def arrived(self, data: bytes, *, from_client: bool) -> None:
        (self.traffic.asked if from_client else self.traffic.answered)(len(data))
        (self.requests if from_client else self.answers).arrived(data)

    def pump(self) -> None:
        self.requests.pump()
        self.answers.pump()

    def lost(self, *, from_client: bool, was_reset: bool) -> None:
        if was_reset:
            self.cut(reset=True)
        else:
            (self.requests if from_client else self.answers).ended()
        if self.client.is_lost and self.server.is_lost:
            self._over()

    def cut(self, *, reset: bool) -> None:
        """Both sides learn it now; what was held back is lost."""
        if self._dialling is not None:
            self._dialling.cancel()
        for way in (self.requests, self.answers):
            way.stop()
        for end in (self.client, self.server):
            if reset:
                end.reset()
            else:
                end.close()
        self._over()

    def _over(self) -> None:
        self.traffic.is_open = False
        self._proxy.remove(self)


class Proxy:
    """Relays to `target_port` of `host` until it is told otherwise. Each fault strikes the connections that
    are open and those that come, and holds until `resume`; faults add up. To be used from one event loop."""

    def __init__(self, target_port: int, *, host: str = "127.0.0.1") -> None:
        self.target_port = target_port
        self.host = host
        self.port = 0
        """Where clients connect; known once it was entered, and kept over `refuse`."""
        self.latency_s = 0.0
        self.bytes_per_s = 0.0
        self.connections: list[Traffic] = []
        """Of every connection that was accepted, oldest first, those that are over included."""
        self._links: dict[_Link, None] = {}
        self._listener: asyncio.Server | None = None
        self._stalled = (False, False)

    @property
    def round_trips(self) -> int:
        """Of all connections together."""
        return sum(traffic.round_trips for traffic in self.connections)

    async def cut(self, *, reset: bool = True) -> None:
        """End every open connection: with a reset, or in the orderly way (`reset=False`) after which the other
        side reads an end. What was on its way is lost. New connections are served."""
        for link in tuple(self._links):
            link.cut(reset=reset)
        await asyncio.sleep(0)

    async def stall(self, *, requests: bool = True, answers: bool = True) -> None:
        """Half-open: connections stay and are accepted, and nothing goes over them; with `requests=False` the
        server still hears and its answers are held back. `resume` lets go what was held back, as a network
        does that comes back; `cut` before it loses that."""
        self._stalled = (requests, answers)
        self._apply_stall()

    async def slow(self, *, latency_s: float = 0.0, bytes_per_s: float = 0.0) -> None:
        """Each way takes so much longer, and carries no more than so much (0: no limit)."""
        self.latency_s = latency_s
        self.bytes_per_s = bytes_per_s

    async def refuse(self) -> None:
        """Whoever connects is refused, as by a machine on which the server does not run."""
        if self._listener is not None:
            self._listener.close()
            self._listener = None
        await asyncio.sleep(0)

    async def resume(self) -> None:
        """All faults end. Connections that were not cut go on."""
        self.latency_s = self.bytes_per_s = 0.0
        self._stalled = (False, False)
        self._apply_stall()
        if self._listener is None:
            self._listener = await self.loop.create_server(lambda: _Link(self).client, "127.0.0.1", self.port)
            self.port = self._listener.sockets[0].getsockname()[1]

    def _apply_stall(self) -> None:
        for link in tuple(self._links):
            link.requests.is_stalled, link.answers.is_stalled = self._stalled
            link.pump()

    # -- for the links

    def now(self) -> float:
        return self.loop.time()

    def add(self, link: _Link) -> None:
        link.requests.is_stalled, link.answers.is_stalled = self._stalled
        self._links[link] = None
        self.connections.append(link.traffic)

    def remove(self, link: _Link) -> None:
        self._links.pop(link, None)

    # -- life

    async def __aenter__(self) -> Self:
        self.loop = asyncio.get_running_loop()
        await self.resume()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.refuse()
        await self.cut()
