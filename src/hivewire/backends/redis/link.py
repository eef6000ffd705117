"""One connection that many share: what is sent in one turn of the loop leaves in one write, and answers
come back in the order of the questions."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence

import hiredis

from hivewire.backends.redis.address import Address, Command, Reply, pack
from hivewire.errors import BackendError, Closed, ConnectionLost

_SECOND_LOOK_S = 0.1


class Batch:
    """Commands whose answers are waited for together."""

    __slots__ = ("answers", "asked_at", "future", "wanted")

    def __init__(self, future: asyncio.Future[list[Reply]] | None, wanted: int, asked_at: float) -> None:
        self.future = future
        self.wanted = wanted
        self.asked_at = asked_at
        self.answers: list[Reply] = []


class Wire(asyncio.Protocol):
    """The live connection. `on_end` is called once, when it is over."""

    def __init__(self, timeout_s: float, on_end: Callable[[Wire], None]) -> None:
        self._loop = asyncio.get_running_loop()
        self._timeout_s = timeout_s
        self._on_end = on_end
        self._reader = hiredis.Reader()
        self._transport: asyncio.Transport | None = None
        self._unsent: list[bytes] = []
        self._waiting: deque[Batch] = deque()
        self._bells: dict[str, set[int | str]] = {}
        self._flush_planned = False
        self._watch: asyncio.TimerHandle | None = None
        self._suspect: Batch | None = None
        self._why = "the server closed the connection"
        self.is_open = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport  # type: ignore[assignment]  # uvloop's is one that does not say so
        self.is_open = True

    def ask(self, commands: Sequence[Command], future: asyncio.Future[list[Reply]] | None) -> None:
        """Send these; their answers come in `future`, errors among them as values."""
        self._unsent.extend([pack(command) for command in commands])
        self._waiting.append(Batch(future, len(commands), self._loop.time()))
        self._plan_flush()

    def ring(self, channel: str, what: int | str) -> None:
        """Tell who listens there, once a write, after what was asked before."""
        self._bells.setdefault(channel, set()).add(what)
        self._plan_flush()

    def _plan_flush(self) -> None:
        if not self._flush_planned:
            self._flush_planned = True
            self._loop.call_soon(self._flush)

    def _flush(self) -> None:
        self._flush_planned = False
        if not self.is_open or self._transport is None:
            return
        if self._bells:
            bells, self._bells = self._bells, {}
            for channel, what in bells.items():
                said = ",".join(map(str, what))
                self._unsent.append(pack(("PUBLISH", channel, said)))
            self._waiting.append(Batch(None, len(bells), self._loop.time()))
        self._transport.write(b"".join(self._unsent))
        self._unsent.clear()
        if self._watch is None:
            self._watch = self._loop.call_later(self._timeout_s, self._look)

    def data_received(self, data: bytes) -> None:
        reader, waiting = self._reader, self._waiting
        try:
            reader.feed(data)
            while (answer := reader.gets()) is not False:
                batch = waiting[0]
                batch.answers.append(answer)
                if isinstance(answer, hiredis.ReplyError) and str(answer).startswith("NOSCRIPT"):
                    self.abort("it has forgotten the scripts")  # they are said anew on the next connection
                if len(batch.answers) == batch.wanted:
                    waiting.popleft()
                    if batch.future is not None and not batch.future.done():
                        batch.future.set_result(batch.answers)
        except (hiredis.ProtocolError, IndexError):
            self.abort("what answers there does not speak as Redis does")

    def _look(self) -> None:
        """Is an answer overdue? Asked twice: after a loop that stood still, answers may lie unread."""
        self._watch = None
        if not self._waiting or not self.is_open:
            self._suspect = None
            return
        oldest = self._waiting[0]
        left = oldest.asked_at + self._timeout_s - self._loop.time()
        if left > 0:
            self._suspect = None
        elif self._suspect is oldest:
            self.abort(f"no answer within {self._timeout_s} s")
            return
        else:
            self._suspect, left = oldest, _SECOND_LOOK_S
        self._watch = self._loop.call_later(left, self._look)

    def abort(self, why: str) -> None:
        self._why = why
        if self._transport is not None:
            self._transport.abort()

    def connection_lost(self, error: Exception | None) -> None:
        self.is_open = False
        if self._watch is not None:
            self._watch.cancel()
        why = str(error) if error is not None else self._why
        self._on_end(self)
        while self._waiting:
            future = self._waiting.popleft().future
            if future is not None and not future.done():
                future.set_exception(ConnectionLost(f"the connection to Redis was lost: {why}"))


class Link:
    """A connection that comes back by itself. What was under way when it broke raises `ConnectionLost`;
    what is asked while it comes back waits for it, in order."""

    def __init__(self, address: Address, prepare: Sequence[Command] = ()) -> None:
        self.address = address
        self._prepare = prepare
        self._wire: Wire | None = None
        self._backlog: list[tuple[Sequence[Command], asyncio.Future[list[Reply]]]] = []
        self._connecting: asyncio.Task[None] | None = None
        self._closed = False
        self.on_return: Callable[[], None] | None = None
        """Called when a connection that had broken is there again."""
        self._has_been = False

    def post(self, commands: Sequence[Command]) -> asyncio.Future[list[Reply]]:
        """Send in this turn of the loop; awaiting the future gives the answers, errors as values."""
        future: asyncio.Future[list[Reply]] = asyncio.get_running_loop().create_future()
        if not commands:
            future.set_result([])
        elif self._wire is not None:
            self._wire.ask(commands, future)
        elif self._closed:
            future.set_exception(Closed(f"use {self.address}: it is not open"))
        else:
            self._backlog.append((commands, future))
            if self._connecting is None:
                self._connecting = asyncio.get_running_loop().create_task(self._connect(), name="connect to Redis")
        return future

    async def call(self, *command: str | bytes | int | float) -> Reply:
        """One command. Its error is raised."""
        (answer,) = await self.post((command,))
        return good(answer, str(command[0]))

    def ring(self, channel: str, what: int | str) -> None:
        if self._wire is not None:
            self._wire.ring(channel, what)

    async def _connect(self) -> None:
        error: Exception | None = None
        try:
            self._wire = await open_wire(self.address, self._prepare, self._ended)
            if self._has_been and self.on_return is not None:
                self.on_return()
            self._has_been = True
        except BackendError as refused:
            error = refused
        finally:
            self._connecting = None
            backlog, self._backlog = self._backlog, []
            for commands, future in backlog:
                if future.done():
                    continue
                if self._wire is not None:
                    self._wire.ask(commands, future)
                else:
                    future.set_exception(error or Closed(f"use {self.address}: it was closed"))

    def _ended(self, wire: Wire) -> None:
        if self._wire is wire:
            self._wire = None

    def cut(self, why: str) -> None:
        """Break the connection, if there is one: what is under way is lost, the next call connects anew."""
        if self._wire is not None:
            self._wire.abort(why)

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


async def open_wire(address: Address, prepare: Sequence[Command], on_end: Callable[[Wire], None]) -> Wire:
    """A connection that has been let in."""
    settings = address.settings
    loop = asyncio.get_running_loop()
    wire: Wire | None = None
    try:
        async with asyncio.timeout(settings.dial_timeout_s):
            _, wire = await loop.create_connection(
                lambda: Wire(settings.read_timeout_s, on_end), address.host, address.port, ssl=address.tls()
            )
            commands = [*address.greeting(), *prepare]
            if commands:
                future: asyncio.Future[list[Reply]] = loop.create_future()
                wire.ask(commands, future)
                for answer, command in zip(await future, commands, strict=True):
                    good(answer, f"connect to {address}: {command[0]!s}")
    except BaseException as error:
        if wire is not None:
            wire.abort("it could not be opened")
        if isinstance(error, TimeoutError):
            raise ConnectionLost(f"connect to {address}: no answer within {settings.dial_timeout_s} s") from None
        if isinstance(error, OSError):
            raise ConnectionLost(f"connect to {address}: {error}") from None
        raise
    return wire


_WAIT_AND_SEE = (
    "LOADING",
    "BUSY",
    "READONLY",
    "MASTERDOWN",
    "TRYAGAIN",
    "CLUSTERDOWN",
    "UNBLOCKED",
    "OOM",
    "MISCONF",
    "NOSCRIPT",
)


def good(answer: Reply, doing: str) -> Reply:
    """The answer, or the error that it is. A server that may be well again soon: `ConnectionLost`."""
    if isinstance(answer, Exception):
        text = str(answer)
        if text.startswith(_WAIT_AND_SEE):
            raise ConnectionLost(f"{doing}: the server is not able to: {text}")
        raise BackendError(f"{doing}: {text}")
    return answer
