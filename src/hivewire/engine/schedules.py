"""Schedules: messages that are sent again and again, by whichever process is there when they are due.

All of them are in the store's catalogue: `schedules` lists their names, `schedule/NAME` holds one. Whoever
finds one due sends its message and then moves `next_at` on, if nobody else has. The message's id follows from the
name and the due time, and so does its idempotency key: a process that died in between, or two that were
there at the same moment, do not make two messages of it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, tzinfo
from zoneinfo import ZoneInfo

import msgspec

from hivewire.codec import check_agent, decode, encode, split_address
from hivewire.durations import parse_duration
from hivewire.engine.core import Core
from hivewire.engine.subscriptions import update
from hivewire.errors import BackendError, Closed, HivewireError, MessageError
from hivewire.ids import derived_id
from hivewire.message import Message
from hivewire.protocol import Receipt, Schedule
from hivewire.rules.cron import Cron
from hivewire.rules.schedule import Calendar, CatchUp, Every, Timing, owed

log = logging.getLogger(__name__)

NAMES = "schedules"
"""Where the catalogue lists them: by its version everybody sees that a schedule has changed."""
_PREFIX = "schedule/"
_LOOK_S = 2.0
_LOOK_SELDOM_S = 5.0
_JITTER_S = 0.05
_SEND_S = 5.0
_LEAST_EVERY_S = 0.1
_MOST_EVERY_S = 100 * 366 * 86_400.0
_MOST_BYTES = 262_144
_MOST_NAME_BYTES = 256

Send = Callable[..., Awaitable[Receipt]]


class _Stored(msgspec.Struct, frozen=True):
    """One schedule as the catalogue holds it."""

    when: str
    timezone: str
    catch_up: CatchUp
    message: bytes
    made_at: float
    next_at: float
    last_at: float = 0.0
    fired: int = 0


_decoder = msgspec.msgpack.Decoder(_Stored)
_encoder = msgspec.msgpack.Encoder()
_names = msgspec.json.Decoder(list[str])


class Schedules:
    """The schedules of the store, as one process sees and fires them."""

    def __init__(self, core: Core, send: Send) -> None:
        self._core = core
        self._backend = core.backend
        self._send = send
        self._known: dict[str, _Stored] = {}
        self._timings: dict[str, tuple[str, Timing]] = {}
        self._version = -1
        self._changed = asyncio.Event()
        self._jitter_s = core.rng.random() * _JITTER_S

    # -- made, listed and ended

    async def put(self, name: str, when: str | float, message: Message, timezone: str, catch_up: CatchUp) -> None:
        """Whoever makes one again as it is leaves it as it is."""
        _check_name(name)
        if catch_up not in ("one", "all", "none"):
            raise MessageError(f"schedule {name}: catch_up is 'one', 'all' or 'none', not {catch_up!r}")
        if not isinstance(message, Message):
            raise MessageError(f"schedule {name}: a hivewire.Message can be sent, not {type(message).__name__}")
        check_agent(split_address(message.to)[0])
        now = self._backend.now()
        text = when if isinstance(when, str) else f"{when!r}s"
        _zone(name, timezone)  # also where it decides nothing: it is a slip of the pen
        timing = _timing(name, text, timezone, now)
        template = message.replace(id=name, created_at=datetime.fromtimestamp(0, UTC))
        body = encode(template, min(self._core.settings.max_message_size_bytes, _MOST_BYTES))
        wanted = _Stored(text, timezone, catch_up, body, now, timing.after(now))
        while True:
            present, version = await self._fresh(name)
            if present is not None and _times(present) == _times(wanted):
                wanted = msgspec.structs.replace(
                    present, message=body, catch_up=catch_up
                )  # nothing that is due is lost
            if present == wanted or await self._backend.put(_PREFIX + name, _encoder.encode(wanted), version):
                break
        is_listed = name in await self._listed()
        await update(self._backend, NAMES, lambda value: _with(value, name))
        if is_listed and (present is None or present.next_at != wanted.next_at):
            await self._tell_others()
        self._look_again()

    async def _tell_others(self) -> None:
        """They look at a schedule again when its time as they know it comes, or when the names have changed."""
        while True:
            entry = await self._backend.get(NAMES)
            if await self._backend.put(NAMES, entry.value, entry.version) is not None:
                return

    async def remove(self, name: str) -> bool:
        """Whether there was one."""
        _check_name(name)
        await update(self._backend, NAMES, lambda value: _without(value, name))
        found = False
        while not found and (entry := await self._backend.get(_PREFIX + name)).value:
            found = await self._backend.put(_PREFIX + name, b"", entry.version) is not None
        self._look_again()
        return found

    async def listed(self) -> list[Schedule]:
        found = []
        for name in await self._listed():
            stored, _ = await self._fresh(name)
            if stored is not None:
                found.append(
                    Schedule(
                        name=name,
                        when=stored.when,
                        timezone=stored.timezone,
                        catch_up=stored.catch_up,
                        message=decode(stored.message),
                        next_at=stored.next_at,
                        last_at=stored.last_at,
                        fired=stored.fired,
                    )
                )
        return found

    async def _listed(self) -> list[str]:
        return _names.decode((await self._backend.get(NAMES)).value or b"[]")

    def _look_again(self) -> None:
        self._version = -1
        self._changed.set()

    # -- fired

    async def run(self) -> None:
        """Fire what is due, until cancelled."""
        while True:
            try:
                await self._look()
                await self._fire_due()
                wait_s = self._wait_s()
            except (BackendError, OSError) as error:  # the next round tries again; nothing was moved on
                log.debug("schedules not fired", extra={"error": str(error)})
                wait_s = _LOOK_S
            self._changed.clear()
            try:
                async with asyncio.timeout(wait_s):
                    await self._changed.wait()
            except TimeoutError:
                continue

    async def _look(self) -> None:
        """Learn which schedules there are, if that has changed."""
        entry = await self._backend.get(NAMES)
        if entry.version == self._version:
            return
        names = _names.decode(entry.value or b"[]")
        self._known = {name: stored for name in names if (stored := (await self._fresh(name))[0]) is not None}
        self._version = entry.version

    async def _fresh(self, name: str) -> tuple[_Stored | None, int]:
        entry = await self._backend.get(_PREFIX + name)
        try:
            return (_decoder.decode(entry.value) if entry.value else None), entry.version
        except msgspec.DecodeError as error:
            log.error("a schedule of another version is left alone", extra={"schedule": name, "error": str(error)})
            return None, entry.version

    def _wait_s(self) -> float:
        if not self._known:
            return _LOOK_SELDOM_S
        soonest = min(stored.next_at for stored in self._known.values())
        return min(max(soonest - self._backend.now(), 0.0) + self._jitter_s, _LOOK_S)

    async def _fire_due(self) -> None:
        now = self._backend.now()
        due = [name for name, stored in self._known.items() if stored.next_at <= now]
        for name, problem in zip(due, await asyncio.gather(*map(self._fire, due), return_exceptions=True), strict=True):
            if isinstance(problem, MessageError):  # this machine may lack its time zone: others fire it
                log.error("a schedule cannot be fired here", extra={"schedule": name, "error": str(problem)})
                self._known.pop(name, None)
            elif problem is not None and not isinstance(problem, BackendError | OSError):
                if not isinstance(problem, Exception) or isinstance(problem, Closed):
                    raise problem
                # Of a middleware, say. The others go on, and this one is tried again.
                log.error("a schedule was not fired", extra={"schedule": name}, exc_info=problem)
                later = msgspec.structs.replace(self._known[name], next_at=self._backend.now() + _LOOK_S)
                self._known[name] = later

    async def _fire(self, name: str) -> None:
        stored, version = await self._fresh(name)
        if stored is None:
            self._known.pop(name, None)
            return
        timing = self._timing_of(name, stored)
        owes = owed(timing, stored.next_at, self._backend.now(), stored.catch_up)
        if owes.next_at != stored.next_at:
            for due in owes.fire:
                await self._fire_one(name, stored, due, owes.missed)
            changed = msgspec.structs.replace(
                stored,
                next_at=owes.next_at,
                last_at=owes.fire[-1] if owes.fire else stored.last_at,
                fired=stored.fired + len(owes.fire),
            )
            if await self._backend.put(_PREFIX + name, _encoder.encode(changed), version) is not None:
                self._core.metrics.fired += len(owes.fire)
                stored = changed
            else:
                stored = (await self._fresh(name))[0] or changed
        self._known[name] = stored

    async def _fire_one(self, name: str, stored: _Stored, due: float, missed: int) -> None:
        id_ = derived_id("schedule", name, f"{due:.6f}")
        try:
            template = decode(stored.message)
            told = {"schedule": name, "due_at": datetime.fromtimestamp(due, UTC).isoformat(), "missed": missed}
            message = template.replace(
                id=id_,
                metadata={**template.metadata, **told},
                created_at=datetime.fromtimestamp(self._backend.now(), UTC),
            )
            await self._send(message, idempotency_key=id_, timeout_s=_SEND_S)
        except (BackendError, Closed):
            raise
        except HivewireError as error:  # it will never be accepted: this time of it is given up
            if error.retryable:
                raise
            log.error("a scheduled message was refused", extra={"schedule": name, "error": str(error)})

    def _timing_of(self, name: str, stored: _Stored) -> Timing:
        key = f"{stored.when}\0{stored.timezone}\0{stored.made_at}"
        known = self._timings.get(name)
        if known is None or known[0] != key:
            known = self._timings[name] = (key, _timing(name, stored.when, stored.timezone, stored.made_at))
        return known[1]


def _timing(name: str, when: str, timezone: str, anchor: float) -> Timing:
    try:
        every_s = parse_duration(when.removeprefix("@every "))
    except ValueError:
        try:
            cron = Cron(when)
        except ValueError as error:
            hint = "write a cron expression such as '30 3 * * mon-fri', or seconds such as 90 or '5m'"
            raise MessageError(f"schedule {name}: {error}; {hint}") from None
        return Calendar(cron, _zone(name, timezone))
    if every_s < _LEAST_EVERY_S:
        raise MessageError(f"schedule {name}: every {every_s:g} s is too often; the least is {_LEAST_EVERY_S} s")
    if every_s > _MOST_EVERY_S:
        raise MessageError(f"schedule {name}: every {every_s:g} s is too seldom; the most is 100 years")
    return Every(every_s, anchor)


def _zone(name: str, timezone: str) -> tzinfo:
    if timezone == "UTC":
        return UTC
    try:
        return ZoneInfo(timezone)
    except (ValueError, OSError, LookupError, TypeError):  # all of these, for one kind of bad name or another
        hint = "use a name such as 'Europe/Berlin' (some systems need the package tzdata)"
        raise MessageError(f"schedule {name}: there is no time zone {timezone!r} here; {hint}") from None


def _times(stored: _Stored) -> tuple[str, str]:
    return stored.when, stored.timezone


def _check_name(name: object) -> None:
    if not isinstance(name, str) or not name or not name.isprintable() or len(name.encode()) > _MOST_NAME_BYTES:
        raise MessageError(f"schedule {name!r}: a name is 1 to {_MOST_NAME_BYTES} bytes of printable text")


def _with(value: bytes, name: str) -> bytes:
    return msgspec.json.encode(sorted({*_names.decode(value or b"[]"), name}))


def _without(value: bytes, name: str) -> bytes:
    return msgspec.json.encode([other for other in _names.decode(value or b"[]") if other != name])
