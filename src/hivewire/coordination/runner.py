"""Carries out the run of a plan over a `Protocol`: sends subtasks, takes results, until the end."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Final, TypeVar

from hivewire.coordination.losses import Losses
from hivewire.coordination.plan_store import Incoming, PlanStore
from hivewire.coordination.roster import Roster
from hivewire.coordination.watcher import Watcher
from hivewire.delivery import Delivery
from hivewire.errors import BackendError, DeliveryError, MessageError, NoCapableWorker
from hivewire.message import UNORDERED, Message, MessageType
from hivewire.protocol import Protocol
from hivewire.rules.plan_state import (
    Begun,
    Cancel,
    Dispatch,
    Event,
    Failed,
    Row,
    RunState,
    Started,
    begun_message,
    content_of,
    event_of,
    marks_of,
)

log = logging.getLogger(__name__)

T = TypeVar("T")

_BATCH: Final = 100
_WAIT_S: Final = 1.0
_PAUSE_S: Final = 0.5


class Runner:
    """Executes one run that is in the store. A runner that dies is replaced by another one on the same
    store and protocol: it goes on where the last step left off, and finished subtasks do not run again.

    The run's mailbox is `run-<id>`; it takes results in any order. `clock` gives seconds since the epoch.
    """

    def __init__(
        self,
        protocol: Protocol,
        store: PlanStore,
        roster: Roster,
        run: str,
        *,
        watcher: Watcher | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._protocol = protocol
        self._store = store
        self._roster = roster
        self._run = run
        self._watcher = watcher or Watcher()
        self._clock = clock
        self._inbox = f"run-{run}"
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="hivewire-plan")
        self._state = store.load(run)
        self._awaited: dict[str, str] = {}
        self._to_send = asyncio.Event()
        self._taking = asyncio.Lock()
        self._finished = asyncio.Event()
        self._last_event_at = clock()

    @property
    def state(self) -> RunState:
        return self._state

    async def execute(self) -> RunState:
        """Carry the run on to its end, from wherever it stands. Raises `NoCapableWorker`."""
        self._check_roster()
        try:
            if not self._state.is_finished:
                await self._protocol.subscribe(self._inbox, mode="competing")
                await self._follow()
                await self._drain()
            return self._state
        finally:
            self._thread.shutdown(wait=True)

    async def cancel(self, reason: str) -> None:
        """End the run now; what its subtasks still answer is ignored."""
        await self._apply([Incoming("cancel", Cancel(at=self._clock(), reason=reason))])

    async def leave(self) -> None:
        """Remove the run's mailbox, once it is finished and its workers have stopped: nothing comes any more."""
        if self._state.is_finished:
            await self._protocol.forget(self._inbox)

    async def _follow(self) -> None:
        self._to_send.set()
        self._index()
        await self._apply([Incoming("start", Started(at=self._clock()))])
        async with asyncio.TaskGroup() as group:
            loops = (self._listen, self._relay, self._look_around)
            tasks = [group.create_task(self._repeat(loop)) for loop in loops]
            await self._finished.wait()
            async with self._taking:  # what was received is acknowledged, too
                for task in tasks:
                    task.cancel()

    async def _repeat(self, once: Callable[[], Awaitable[None]]) -> None:
        """For ever; a store of messages that is away for a while is waited for."""
        while True:
            try:
                await once()
            except BackendError as error:
                if not error.retryable:
                    raise
                log.warning("the run waits for the protocol", extra={"run": self._run, "error": str(error)})
                await asyncio.sleep(_PAUSE_S)

    async def _apply(self, events: Sequence[Incoming]) -> None:
        """Take the events in; when this returns they are stored, with what follows from them."""
        before = self._state
        self._state, commands = await self._stored(lambda: self._store.apply(self._run, events))
        for command in commands:
            if isinstance(command, Dispatch):
                self._awaited[command.id] = command.subtask
                self._to_send.set()
        if self._state is not before:
            self._noted()

    def _noted(self) -> None:
        self._last_event_at = self._clock()
        self._watcher.stepped(self._state)
        if self._state.is_finished:
            self._finished.set()

    async def _listen(self) -> None:
        """Results: stored first, acknowledged then."""
        deliveries = await self._protocol.receive(self._inbox, limit=_BATCH, wait_s=_WAIT_S)
        async with self._taking:
            await self._take(deliveries)

    async def _take(self, deliveries: Sequence[Delivery]) -> None:
        answers = [d.message for d in deliveries if d.message.type != MessageType.EVENT]
        if any(message.in_reply_to not in self._awaited for message in answers):
            await self._refresh()  # another runner of this run may have sent what this is the answer to
        events: dict[str, Incoming] = {}
        for message in answers:
            name = f"answer:{message.in_reply_to}"
            row = None if name in events else self._row_of(message.in_reply_to)
            self._watcher.answered(message, row)
            if row is not None:
                events[name] = Incoming(name, self._meaning(message, row))
        for delivery in deliveries:
            if delivery.message.type == MessageType.EVENT:
                self._watcher.told(delivery.message)
                events.update(self._begun(delivery.message))
        if events:
            await self._apply(list(events.values()))
        for settled in await asyncio.gather(*(d.ack() for d in deliveries), return_exceptions=True):
            if isinstance(settled, DeliveryError):
                log.info("a result comes again; it is known already", extra={"run": self._run})
            elif settled is not None:
                raise settled

    def _begun(self, event: Message) -> dict[str, Incoming]:
        """The start of a subtask whose time is limited, if this event tells of one."""
        row = self._row_of(begun_message(event.content))
        if row is None or row.spec.timeout_s is None:
            return {}
        name = f"begun:{row.message_id}"
        begun = Begun(at=self._clock(), version=row.version, subtask=row.spec.name, attempt=row.attempt)
        return {name: Incoming(name, begun)}

    async def _refresh(self) -> None:
        """See what other runners of this run have done meanwhile."""
        before = self._state
        self._state = await self._stored(lambda: self._store.load(self._run))
        if self._state is not before:
            self._index()
            self._noted()

    def _index(self) -> None:
        running = (row for row in self._state.rows.values() if row.status == "running")
        self._awaited.update({row.message_id: row.spec.name for row in running})

    def _row_of(self, message_id: str | None) -> Row | None:
        """The subtask that waits for the answer to this message."""
        name = self._awaited.get(message_id or "")
        row = self._state.rows.get(name) if name is not None else None
        return row if row is not None and row.message_id == message_id and row.status == "running" else None

    def _meaning(self, message: Message, row: Row) -> Event:
        if message.type == MessageType.ERROR:
            return self._failed(row, str(message.content))
        return event_of(row, message.content, self._clock())

    def _failed(self, row: Row, error: str) -> Failed:
        return Failed(at=self._clock(), version=row.version, subtask=row.spec.name, attempt=row.attempt, error=error)

    async def _relay(self) -> None:
        """Send what was decided, in order; forget it when the protocol has stored it."""
        await self._to_send.wait()
        self._to_send.clear()
        try:
            while await self._relay_some():
                pass
        except BackendError:
            self._to_send.set()
            raise

    async def _relay_some(self) -> bool:
        def read() -> tuple[RunState, list[Dispatch]]:
            return self._store.load(self._run), self._store.outbox(self._run, _BATCH)

        state, commands = await self._stored(read)
        rows = ((command, state.rows.get(command.subtask)) for command in commands)
        wanted = [row for command, row in rows if row is not None and row.message_id == command.id and row.is_open]
        if wanted:
            await self._send([self._message(state, row) for row in wanted])
        if commands:
            await self._stored(lambda: self._store.sent(self._run, [command.id for command in commands]))
        return bool(commands)

    async def _send(self, messages: Sequence[Message]) -> None:
        try:
            await self._protocol.send_many(messages)
        except MessageError:  # one of them cannot be sent at all: find it
            for message in messages:
                await self._send_alone(message)
        else:
            for message in messages:
                self._watcher.sent(message)

    async def _send_alone(self, message: Message) -> None:
        try:
            await self._protocol.send(message)
        except MessageError as error:
            row = self._row_of(message.id)
            why = f"its message cannot be sent: {error} (large outputs belong in files, their paths in the output)"
            if row is not None:
                await self._apply([Incoming(f"answer:{message.id}", self._failed(row, why))])
        else:
            self._watcher.sent(message)

    def _message(self, state: RunState, row: Row) -> Message:
        """The message of an attempt. It has the same id each time it is made, so that it may be sent again."""
        return Message(
            id=row.message_id,
            type=MessageType.TASK,
            sender=self._inbox,
            to=self._roster.worker_for(row.spec.assigned_to, row.message_id),
            content=content_of(state, row),
            key=UNORDERED,
            priority=row.spec.priority,
            metadata=marks_of(state, row, self._inbox),
        )

    async def _look_around(self) -> None:
        """Timers that went off, messages that died or vanished."""
        losses = Losses(self._protocol, self._inbox)
        while True:
            await self._refresh()
            due = await self._stored(lambda: self._store.due(self._run, self._clock()))
            if due:
                await self._apply(due)
            dead = await losses.dead(self._roster.names)
            events = [
                Incoming(f"answer:{letter.id}", self._failed(row, losses.why(letter)))
                for letter in dead
                if (row := self._row_of(letter.id)) is not None
            ]
            if events:
                await self._apply(events)
            await self._look_for_vanished(losses)
            await asyncio.sleep(_PAUSE_S)

    async def _look_for_vanished(self, losses: Losses) -> None:
        if await self._stored(lambda: self._store.outbox(self._run, 1)):
            return  # the protocol has not got everything yet
        state = self._state
        rows = {row.message_id: row for row in state.rows.values() if row.status == "running"}
        agents = {name: self._roster.worker_for(row.spec.assigned_to, name) for name, row in rows.items()}
        again, given_up = await losses.vanished(agents, quiet_s=self._clock() - self._last_event_at)
        if again:
            log.warning("messages have vanished; sending them again", extra={"run": self._run, "count": len(again)})
            await self._protocol.send_many([self._message(state, rows[name]) for name in again])
        if given_up:
            why = "its message has vanished: neither waiting, nor with a worker, nor among the dead letters"
            await self._apply([Incoming(f"answer:{name}", self._failed(rows[name], why)) for name in given_up])

    async def _drain(self) -> None:
        """Take what still lies in the mailbox, so that nothing is left behind."""
        while deliveries := await self._protocol.receive(self._inbox, limit=_BATCH, wait_s=0):
            await self._take(deliveries)

    async def _stored(self, work: Callable[[], T]) -> T:
        """The store blocks for the disk; it has a thread of its own."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, work)

    def _check_roster(self) -> None:
        for row in self._state.rows.values():
            if row.is_open and row.spec.assigned_to not in self._roster.capabilities:
                raise NoCapableWorker(
                    f'run {self._run} waits for the capability "{row.spec.assigned_to}", which nobody in this team '
                    "has; go on with the team that it was started with, or start anew"
                )
