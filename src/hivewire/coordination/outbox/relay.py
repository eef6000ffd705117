"""Sends what users' transactions have put into the outbox."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Final, Self

from hivewire.codec.wire import decode
from hivewire.coordination.ledger.opening import ledger_settings, store_of
from hivewire.coordination.ledger.store import Store
from hivewire.coordination.outbox import scripts
from hivewire.coordination.outbox.boxes import order_of
from hivewire.coordination.outbox.tables import TABLES, tables
from hivewire.engine.outage import Outage
from hivewire.errors import BackendError, MessageError, MigrationNeeded, SettingsError, duration_s
from hivewire.ids import new_id
from hivewire.message import Message
from hivewire.protocol import Protocol

if TYPE_CHECKING:
    from hivewire.coordination.outbox.scripts import OutboxStats, Waiting

log = logging.getLogger(__name__)

_LANES_AT_ONCE: Final = 4
_A_LANE: Final = 100
_MOST_OF_A_LANE: Final = 1_600
"""So many messages that must wait for their queue hold up no others of their lane."""
_A_SEND_S: Final = 2.0
"""A queue that is full for longer is left for the next turn."""
_PAUSE_S: Final = 0.5
_HOUSE_S: Final = 60.0
_DAY_S: Final = 86_400.0


class OutboxDatabase:
    """The outbox in the database of a URL: `sqlite:///file.db` or `postgresql://…`. Opened when it is first used."""

    def __init__(self, database: str) -> None:
        settings = ledger_settings(database)
        if settings.ledger.type == "inmemory":
            raise SettingsError("an outbox is in the database that your transactions write: name its URL")
        if settings.ledger.type == "sqlite":
            from hivewire.coordination.outbox.file import UsersFile

            self.store: Store = UsersFile(Path(settings.ledger.path))
        else:
            self.store = store_of(settings)

    async def open(self) -> None:
        """Raises `MigrationNeeded` when the tables are not there."""
        await self.store.open()
        if gone := await self.store.read(partial(scripts.missing, TABLES)):
            raise MigrationNeeded(
                f"the database has no {', '.join(gone)}; run `hivewire outbox create`, or put what "
                "`hivewire outbox sql` prints into your own migrations"
            )

    async def create(self) -> None:
        """Make the tables that are not there."""
        await self.store.open()
        await self.store.write(partial(scripts.create, tables(self.store.dialect)))

    async def stats(self) -> OutboxStats:
        """How many messages wait, were sent, were refused, are noted as handled."""
        return await self.store.read(scripts.stats)

    async def retry(self) -> int:
        """Let what was refused be tried again; returns how many."""
        return await self.store.write(scripts.retry)

    async def close(self) -> None:
        """Idempotent."""
        await self.store.close()


class Relay:
    """Sends the committed messages of an outbox, each once, those of one recipient and key in order.

    Any number of relays, in any number of processes, share the work. A relay that dies is made good by the others
    after `lease_s`; what it had sent and not marked is sent again with the same id and idempotency key, so it is
    stored once (on Kafka: handled once). `keep_s` and `handled_keep_s`: how long sent messages, and what an `Inbox`
    has noted, are kept.
    """

    def __init__(
        self,
        protocol: Protocol,
        database: str,
        *,
        poll_s: float = 0.2,
        lease_s: float = 10.0,
        keep_s: float = _DAY_S,
        handled_keep_s: float = 7 * _DAY_S,
    ) -> None:
        if lease_s < 1 or poll_s <= 0:
            raise SettingsError(f"a relay's lease_s is at least 1 and poll_s above 0, not {lease_s} and {poll_s}")
        if not isinstance(protocol, Protocol):
            raise SettingsError(f"a relay's protocol is what hivewire.connect gives, not {protocol!r:.80}")
        try:
            duration_s(keep_s, "keep_s of a relay")
            duration_s(handled_keep_s, "handled_keep_s of a relay")  # else what was handled would be handled again
        except MessageError as error:
            raise SettingsError(str(error)) from None
        self._protocol = protocol
        self.database = OutboxDatabase(database)
        self._poll_s = poll_s
        self._lease_s = lease_s
        self._keep_s = keep_s
        self._handled_keep_s = handled_keep_s
        self._owner = new_id()
        self._is_wanted = asyncio.Event()
        self._running: asyncio.Task[None] | None = None
        self._cleaned_at = -_HOUSE_S
        self._turn = 0
        self._held_up: dict[int, int] = {}
        """Lanes from which nothing could be sent when they were tried last, and in which turn that was."""
        self._pages: dict[int, int] = {}
        """How far to look into lanes where something stays."""

    async def __aenter__(self) -> Self:
        """Send in the background from now on. Raises `MigrationNeeded`."""
        try:
            await self.database.open()
        except BaseException:
            await self.database.close()
            raise
        self._running = asyncio.create_task(self._run(), name="hivewire-outbox-relay")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        running, self._running = self._running, None
        if running is not None:
            running.cancel()
            await asyncio.wait([running])
        await self.database.close()

    def soon(self) -> None:
        """Look at once: a transaction of this process was committed. Others are seen within `poll_s`."""
        self._is_wanted.set()

    async def _run(self) -> None:
        outage = Outage(log, "send what is in the outbox", "outbox")
        while True:
            self._is_wanted.clear()
            try:
                sent = await self.send_some()
                await self._clean()
                outage.is_over()
            except BackendError as error:
                outage.goes_on(error)
                sent = 0
                await asyncio.sleep(_PAUSE_S)
            except Exception:
                log.exception("the relay goes on after an error")
                sent = 0
                await asyncio.sleep(_PAUSE_S)
            if not sent:
                try:
                    async with asyncio.timeout(self._poll_s):  # `wait_for` of Python 3.11 may swallow a cancel
                        await self._is_wanted.wait()
                except TimeoutError:
                    continue

    async def send_some(self) -> int:
        """Send a part of what waits; returns how many messages. 0: nothing waits that another relay has not in hand.

        Raises `BackendError` when a store is away; what could not be sent waits.
        """
        store = self.database.store
        lanes = await store.read(partial(scripts.waiting_lanes, self._owner))
        if not lanes:
            return 0
        until = time.monotonic() + self._lease_s / 2
        lanes.sort(key=lambda lane: self._held_up.get(lane, 0))  # stable: else those with the oldest first
        lanes = lanes[:_LANES_AT_ONCE]
        pages = {lane: self._pages.get(lane, _A_LANE) for lane in lanes}
        waiting = await store.write(partial(scripts.claim, pages, self._owner, self._lease_s))
        sent: list[int] = []
        refused: list[tuple[int, str]] = []
        try:
            await self._send(waiting, until, sent, refused)
        finally:
            if sent or refused or waiting:
                await store.write(partial(scripts.settle, self._owner, sent, refused))
            self._note_turn(lanes, waiting, {*sent, *(number for number, _ in refused)})
        return len(sent) + len(refused)

    def _note_turn(self, lanes: Sequence[int], waiting: Sequence[Waiting], settled: set[int]) -> None:
        """Lanes that are held up come after all others, so that they hold up no other; and what stays in a lane must
        not fill the next look into it."""
        self._turn += 1
        moved = {each.lane for each in waiting if each.number in settled}
        stays = Counter(each.lane for each in waiting if each.number not in settled)
        for lane in lanes:
            if lane in moved:
                self._held_up.pop(lane, None)
            else:
                self._held_up[lane] = self._turn
            self._pages[lane] = min(max(2 * stays[lane], _A_LANE), _MOST_OF_A_LANE)

    async def _send(
        self, waiting: Sequence[Waiting], until: float, sent: list[int], refused: list[tuple[int, str]]
    ) -> None:
        """The first of each key at once, then the second of each, and so on: a key that is held up, by a full queue
        for instance, holds up no other. Stops when half the lease is over; the rest is for the next turn."""
        keys: dict[tuple[str, str], list[tuple[int, Message]]] = {}
        for number, body, _ in waiting:
            try:
                message = decode(body)
            except MessageError as error:
                log.warning("a row of the outbox is no message", extra={"number": number, "error": str(error)})
                refused.append((number, str(error)))
                continue
            keys.setdefault(order_of(message), []).append((number, message))
        trouble: Exception | None = None
        while keys and time.monotonic() < until:
            heads = [(key, *queue.pop(0)) for key, queue in keys.items()]
            outcomes = await asyncio.gather(
                *(self._send_one(message, until) for _, _, message in heads), return_exceptions=True
            )
            for (key, number, message), outcome in zip(heads, outcomes, strict=True):
                if outcome is None:
                    sent.append(number)
                elif isinstance(outcome, MessageError):
                    log.warning("a message of the outbox is refused", extra={"id": message.id, "error": str(outcome)})
                    refused.append((number, str(outcome)))
                elif isinstance(outcome, Exception):
                    trouble = outcome
                    keys[key].clear()  # what is behind it stays behind it
                else:
                    raise outcome
            keys = {key: queue for key, queue in keys.items() if queue}
        if trouble is not None and not sent and not refused:
            raise trouble
        if trouble is not None:
            log.warning("a message of the outbox is not sent yet", extra={"error": str(trouble)})

    async def _send_one(self, message: Message, until: float) -> None:
        timeout_s = min(max(0.1, until - time.monotonic()), _A_SEND_S)
        await self._protocol.send(message, idempotency_key=f"outbox/{message.id}", timeout_s=timeout_s)

    async def _clean(self) -> None:
        """Forget what was sent, or handled, long ago."""
        if time.monotonic() - self._cleaned_at < _HOUSE_S:
            return
        self._cleaned_at = time.monotonic()
        write = self.database.store.write
        sent = partial(scripts.purge, "hivewire_outbox", "settled_at", self._keep_s, "error = ''")
        handled = partial(scripts.purge, "hivewire_inbox", "handled_at", self._handled_keep_s)
        for script in (sent, handled):
            while await write(script):
                pass
