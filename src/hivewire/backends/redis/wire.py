"""One live connection that many share: what is asked in one turn of the loop leaves in one write, and answers
come back in the order of the questions."""

from __future__ import annotations

import asyncio
import ssl
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from typing import Final

import hiredis

from hivewire.backends.redis.address import Address, Command, Reply, pack
from hivewire.backends.redis.awaited import Batch, Redirect, Stored, fail, problem_of
from hivewire.backends.redis.link import good
from hivewire.errors import BackendError, ConnectionLost

_SECOND_LOOK_S = 0.1
_MOST_ASK_S = 1.0
_RARE: Final = frozenset({hiredis.PushNotification, hiredis.ReplyError})
_NOTHING: Final = object()
"""The parser has no whole answer."""


class Wire(asyncio.Protocol):
    """The live connection. `on_end` is called once, when it is over; `on_error` with each error that the server
    answers."""

    def __init__(
        self,
        address: Address,
        on_end: Callable[[Wire], None],
        on_error: Callable[[str], None] | None = None,
        redirect: Redirect | None = None,
    ) -> None:
        self.loop = asyncio.get_running_loop()
        self._name = str(address)
        self._settings = settings = address.settings
        self._timeout_s = settings.read_timeout_s
        self._window = settings.pipeline_size
        self._on_end = on_end
        self._on_error = on_error
        self._redirect = redirect
        self._reader = hiredis.Reader(notEnoughData=_NOTHING)
        self._transport: asyncio.Transport | None = None
        self._unsent: list[bytes] = []
        self._waiting: deque[Batch | Stored] = deque()
        self._under_way = 0
        """Commands without an answer; counted only where there is a window."""
        self._firm: list[tuple[Batch, asyncio.Future[list[Reply]]]] = []
        """Batches of the next write whose answers wait for replicas."""
        self._bells: dict[str, set[int | str]] = {}
        self._flush: asyncio.Handle | None = None
        self._asked_at = 0.0
        """When the first of what leaves in the next write was asked."""
        self._watch: asyncio.TimerHandle | None = None
        self._stuck: asyncio.TimerHandle | None = None
        self._suspect: Batch | Stored | None = None
        self._heard_at = 0.0
        self.why = "the server closed the connection"
        self.error: Exception | None = None
        """What ended it, where the system or TLS says so."""
        self.has_heard = False
        self.is_open = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport  # type: ignore[assignment]  # uvloop's is one that does not say so
        self.is_open = True

    # -- asking

    def ask(
        self,
        commands: Sequence[Command],
        future: asyncio.Future[list[Reply]] | None,
        *,
        firm: bool = False,
        beyond_s: float = 0.0,
        told: Callable[[asyncio.Future[list[Reply]]], None] | None = None,
    ) -> None:
        """Send these; their answers come in `future`, errors among them as values. `told`: see `Link.post_for`."""
        if self._flush is None:
            self._asked_at = self.loop.time()
        self._unsent.extend([pack(command) for command in commands])
        if firm and future is not None and self._settings.wait_replicas:
            batch = Batch(None, commands, self._asked_at, beyond_s, firm=True)
            self._firm.append((batch, future))
        else:
            batch = Batch(future, commands, self._asked_at, beyond_s, told, firm=firm)
        self._waiting.append(batch)
        if self._flush is None:
            self._plan_flush()

    def store(self, packed: bytes, channel: str = "", what: int = 0) -> asyncio.Future[BackendError | None] | None:
        if self._settings.wait_replicas:
            return None
        if self._flush is None:
            self._asked_at = self.loop.time()
        future: asyncio.Future[BackendError | None] = self.loop.create_future()
        self._unsent.append(packed)
        self._waiting.append(Stored(future, packed, self._asked_at))
        if channel:
            bells = self._bells.get(channel)
            if bells is None:
                bells = self._bells[channel] = set()
            bells.add(what)
        if self._flush is None:
            self._plan_flush()
        return future

    def ring(self, channel: str, what: int | str) -> None:
        self._bells.setdefault(channel, set()).add(what)
        if self._flush is None:
            self._plan_flush()

    def _plan_flush(self) -> None:
        interval_s = self._settings.flush_interval_s
        if interval_s and not (self._window is not None and len(self._unsent) >= self._window):
            self._flush = self.loop.call_later(interval_s, self._write)
        else:
            self._flush = self.loop.call_soon(self._write)

    def hurry(self) -> None:
        """What waits for the end of this turn of the loop leaves now."""
        if self._flush is not None:
            self._flush.cancel()
            self._write()

    def _write(self) -> None:
        self._flush = None
        if not self.is_open or self._transport is None:
            return
        if self._bells:
            self._say_bells()
        if self._firm:
            self._ask_replicas()
        if self._window is None:
            self._transport.write(b"".join(self._unsent))
            self._unsent.clear()
        else:
            room = self._window - self._under_way
            now, self._unsent = self._unsent[:room], self._unsent[room:]
            self._under_way += len(now)
            if now:
                self._transport.write(b"".join(now))
        if self._watch is None:
            self._watch = self.loop.call_later(self._timeout_s, self._look)

    def _say_bells(self) -> None:
        bells, self._bells = self._bells, {}
        commands: list[Command] = [("PUBLISH", channel, ",".join(map(str, what))) for channel, what in bells.items()]
        self._unsent.extend([pack(command) for command in commands])
        self._waiting.append(Batch(None, commands, self.loop.time()))

    # -- replicas

    def _ask_replicas(self) -> None:
        """One question a write: `WAIT` answers for all that this connection has written before it."""
        settings = self._settings
        firm, self._firm = self._firm, []
        answered: asyncio.Future[list[Reply]] = self.loop.create_future()
        answered.add_done_callback(lambda done: self._replicated(done, firm))
        wait: Command = ("WAIT", settings.wait_replicas, max(1, round(settings.wait_timeout_s * 1000)))
        self._unsent.append(pack(wait))
        self._waiting.append(Batch(answered, (wait,), self.loop.time(), settings.wait_timeout_s))

    def _replicated(
        self, answered: asyncio.Future[list[Reply]], firm: Sequence[tuple[Batch, asyncio.Future[list[Reply]]]]
    ) -> None:
        error = answered.exception()  # asked for in any case: perhaps nobody waits for an outcome any more
        have = answered.result()[0] if error is None else 0
        for batch, future in firm:
            batch.when_whole = partial(self._judge, batch, future, have, error)
            if not batch.elsewhere:
                batch.when_whole()

    def _judge(
        self, batch: Batch, future: asyncio.Future[list[Reply]], have: Reply, error: BaseException | None
    ) -> None:
        wanted = self._settings.wait_replicas
        if future.done():
            return
        if error is not None:
            future.set_exception(error)
        elif isinstance(have, int) and have >= wanted:
            future.set_result(batch.answers)
        else:
            told = have if isinstance(have, Exception) else f"{have} of {wanted} replicas have it"
            doubt = hiredis.ReplyError(f"NOREPLICAS within {self._settings.wait_timeout_s} s: {told}")
            future.set_result([each if isinstance(each, Exception) else doubt for each in batch.answers])

    # -- answers

    def data_received(self, data: bytes) -> None:
        reader, waiting = self._reader, self._waiting
        self._heard_at = self.loop.time()
        self.has_heard = True
        answered = 0
        calls: tuple[Callable[[], None], ...] = ()  # after all is read: their errors must not pass for the server's
        try:
            reader.feed(data)
            for answer in iter(reader.gets, _NOTHING):
                kind = answer.__class__
                if kind in _RARE:
                    if kind is hiredis.PushNotification:
                        continue  # not an answer: the server says something of its own accord
                    self._refused(str(answer))
                    if self._redirect is not None:
                        waiting[0].sent_on(self._redirect, str(answer))
                batch = waiting[0]
                answered += 1
                if isinstance(batch, Stored):
                    waiting.popleft()
                    stored = batch.future
                    if not stored.done() and not batch.elsewhere:
                        stored.set_result(None if kind is bytes else problem_of(answer))
                    continue
                answers = batch.answers
                answers.append(answer)
                if len(answers) == batch.wanted:
                    waiting.popleft()
                    if batch.elsewhere:
                        batch.await_the_rest()
                    elif batch.future is not None and not batch.future.done():
                        batch.future.set_result(answers)
                        if batch.told is not None:
                            calls = (*calls, partial(batch.told, batch.future))
        except (hiredis.ProtocolError, IndexError):
            self.abort("what answers there does not speak as Redis does")
        if self._window is not None:
            self._under_way -= answered
            if self._unsent and self._flush is None:
                self._flush = self.loop.call_soon(self._write)
        for call in calls:
            try:
                call()
            except Exception as error:  # noqa: BLE001  # as of any callback: it must not end the connection of others
                self.loop.call_exception_handler({"message": f"Exception in {call!r}", "exception": error})

    def _refused(self, text: str) -> None:
        if text.startswith("NOSCRIPT"):
            self.abort("it has forgotten the scripts")  # they are said anew on the next connection
        elif text.startswith("READONLY"):
            self.abort("the server is a replica now")  # who connects anew looks where the master is
        elif self._on_error is not None:
            self._on_error(text)

    def _look(self) -> None:
        """Is an answer overdue? Asked twice: after a loop that stood still, answers may lie unread."""
        self._watch = None
        if not self._waiting or not self.is_open:
            self._suspect = None
            return
        oldest = self._waiting[0]
        silent_since = max(oldest.asked_at + oldest.beyond_s, self._heard_at)
        left = silent_since + self._timeout_s - self.loop.time()
        if left > 0:
            self._suspect = None
        elif self._suspect is oldest:
            self.abort(f"no answer within {self._timeout_s + oldest.beyond_s:g} s")
            return
        else:
            self._suspect, left = oldest, _SECOND_LOOK_S
        self._watch = self.loop.call_later(left, self._look)

    # -- what does not go out

    def pause_writing(self) -> None:
        """More is under way than the system takes: that must not last."""
        limit_s = self._settings.write_timeout_s
        self._stuck = self.loop.call_later(
            limit_s, self.abort, f"what was sent has not left this machine within {limit_s:g} s"
        )

    def resume_writing(self) -> None:
        if self._stuck is not None:
            self._stuck.cancel()
            self._stuck = None

    # -- the end

    def abort(self, why: str) -> None:
        self.why = why
        if self._transport is not None:
            self._transport.abort()

    def connection_lost(self, error: Exception | None) -> None:
        self.is_open = False
        for handle in (self._watch, self._stuck, self._flush):
            if handle is not None:
                handle.cancel()
        if error is not None:
            self.why, self.error = str(error), error
        self._on_end(self)
        lost = ConnectionLost(f"the connection to Redis at {self._name} was lost: {self.why}")
        while self._waiting:
            batch = self._waiting.popleft()
            if isinstance(batch, Batch) and batch.told is not None and batch.future is not None:
                batch.future.add_done_callback(batch.told)
            fail(batch.future, lost)
        for _, future in self._firm:
            fail(future, lost)


async def open_wire(
    address: Address,
    prepare: Sequence[Command],
    on_end: Callable[[Wire], None],
    on_error: Callable[[str], None] | None = None,
    redirect: Redirect | None = None,
) -> Wire:
    """A connection that has been let in."""
    settings = address.settings
    loop = asyncio.get_running_loop()
    wire: Wire | None = None
    try:
        async with asyncio.timeout(settings.dial_timeout_s):
            _, wire = await loop.create_connection(
                lambda: Wire(address, on_end, on_error, redirect),
                address.host,
                address.port,
                ssl=address.tls(),
                server_hostname=address.host if settings.tls else None,
            )
            commands = [*address.greeting(), *prepare]
            if commands:
                future: asyncio.Future[list[Reply]] = loop.create_future()
                wire.ask(commands, future)
                for answer, command in zip(await future, commands, strict=True):
                    good(answer, f"connect to {address}: {command[0]!s}")
            if not wire.is_open:
                raise ConnectionLost(wire.why)
    except BaseException as error:
        if wire is not None:
            wire.abort("it could not be opened")
        if isinstance(error, OSError | BackendError):
            raise _not_opened(address, error, wire) from None
        raise
    return wire


def _not_opened(address: Address, error: OSError | BackendError, wire: Wire | None) -> BackendError:
    settings = address.settings
    cause = wire.error if wire is not None and wire.error is not None else error
    if isinstance(cause, ssl.SSLError):
        return address.distrust(cause)
    if isinstance(error, TimeoutError):
        hint = "; a server without TLS is redis://" if settings.tls else ""
        return ConnectionLost(f"connect to {address}: no answer within {settings.dial_timeout_s:g} s{hint}")
    if isinstance(error, ConnectionLost) and wire is not None and not wire.has_heard:
        hint = "asks for a certificate, set redis.tls_cert_file" if settings.tls else "speaks TLS, write rediss://"
        return ConnectionLost(f"connect to {address}: {error}; if it {hint}")
    return ConnectionLost(f"connect to {address}: {error}") if isinstance(error, OSError) else error


async def ask_once(address: Address, command: Command) -> Reply:
    """One question on a connection of its own, that ends with it. Not longer than a second."""
    limit_s = min(address.settings.dial_timeout_s, _MOST_ASK_S)
    try:
        async with asyncio.timeout(limit_s):
            wire = await open_wire(address, (), lambda _: None)
            try:
                future: asyncio.Future[list[Reply]] = asyncio.get_running_loop().create_future()
                wire.ask((command,), future)
                (answer,) = await future
            finally:
                wire.abort("it was asked")
    except TimeoutError:
        raise ConnectionLost(f"ask {address}: no answer within {limit_s:g} s") from None
    return good(answer, f"ask {address}: {command[0]!s}")
