"""What a coordinator does for all runs: takes in answers, sends what was decided, asks for plans, looks around."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import aclosing
from functools import partial
from typing import Final

from hivewire.coordination.ledger import Ledger
from hivewire.coordination.ledger.run_outbox import Kept
from hivewire.coordination.ledger.runs import Runs
from hivewire.coordination.losses import Losses
from hivewire.coordination.meaning import Meaning, concerns_the_state
from hivewire.coordination.missing import Missing
from hivewire.coordination.moves import Moves
from hivewire.coordination.planner import Planner, plain
from hivewire.coordination.stopping import stop
from hivewire.coordination.tasks import TaskRequest, Trouble
from hivewire.coordination.team import HEARTBEAT, Team
from hivewire.coordination.watcher import Watcher
from hivewire.delivery import Delivery
from hivewire.errors import CoordinationError, DeliveryError, HivewireError, MessageError, ModelError
from hivewire.ids import new_id
from hivewire.message import STOPS, UNORDERED, Message, MessageType
from hivewire.protocol import Protocol
from hivewire.rules.plan_limits import Capability
from hivewire.rules.plan_state import (
    Dispatch,
    Incoming,
    MakePlan,
    Planned,
    Row,
    RunState,
    Stop,
    Timer,
    content_of,
    marks_of,
)

log = logging.getLogger(__name__)

_BATCH: Final = 100
_FRONT: Final = (-1, -1)
"""Before all places of an outbox."""
_WAIT_S: Final = 1.0
_LOOK_S: Final = 0.5
_STRANDED: Final = ("max_attempts", "crashed")
"""Reasons of dead letters that say something of the coordinators that had it, and nothing of the answer."""
_THINKING_S: Final = 1.0
"""While a model makes a plan: how often it is looked whether it is still wanted."""
_STALE_S: Final = 2.0
"""What has waited in an outbox for so long is sent by whoever sees it."""


class Errands:
    """The loops of one coordinator. Two that do the same thing at once are no harm: an event is taken in once, and
    a message that is sent twice has one id."""

    def __init__(
        self,
        protocol: Protocol,
        runs: Runs,
        ledger: Ledger,
        team: Team,
        *,
        name: str,
        planner: Planner | None,
        described: Callable[[], Mapping[str, Capability]],
        watcher: Watcher,
        discover: bool,
        met: Callable[[], Awaitable[None]],
        lease_s: float,
        clock: Callable[[], float],
    ) -> None:
        self._protocol = protocol
        self._runs = runs
        self._ledger = ledger
        self._team = team
        self._name = name
        self._planner = planner
        self._described = described
        self._watcher = watcher
        self._discovers = discover
        self._met = met
        self._lease_s = lease_s
        self._clock = clock
        self._meaning = Meaning(clock)
        self._owner = new_id()
        self._looked_at = ""
        """The run whose outbox was looked at last, of many that were left behind."""
        self._losses = Losses(protocol)
        self._missing = Missing(protocol, runs, name, self._able, clock)
        self._planning: dict[str, asyncio.Task[None]] = {}
        self._relaying: dict[str, asyncio.Task[None]] = {}
        self.model_trouble = ""
        """Why the model gave no answer when it was asked last."""
        self.moves = Moves()

    async def close(self) -> None:
        """Cancel what is under way; it is done by others, or later."""
        tasks = [*self._planning.values(), *self._relaying.values()]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    # -- answers

    async def listen(self) -> None:
        """Answers: stored first, acknowledged then."""
        by_run: dict[str, list[Delivery]] = {}
        for delivery in await self._protocol.receive(self._name, limit=_BATCH, wait_s=_WAIT_S):
            if delivery.message.type == HEARTBEAT:
                await self._hear(delivery)
            else:
                by_run.setdefault(delivery.message.to.partition("/")[2], []).append(delivery)
        for run, deliveries in by_run.items():
            await self._take(run, deliveries)

    async def _hear(self, delivery: Delivery) -> None:
        try:
            self._team.hear(delivery.message.content)
        except ValueError as error:
            log.warning("not a heartbeat", extra={"sender": delivery.message.sender, "error": str(error)})
        await _settled([delivery.ack()])

    async def _take(self, run: str, deliveries: Sequence[Delivery]) -> None:
        answers = [d.message for d in deliveries if concerns_the_state(d.message)]
        notes = [
            (d.message.id, self._clock(), {"type": "progress", "from": d.message.sender, "content": d.message.content})
            for d in deliveries
            if not concerns_the_state(d.message)
        ]
        try:
            if notes:
                await self._runs.note(run, notes)
                self.moves.tell(run)
                for delivery in deliveries:
                    if not concerns_the_state(delivery.message):
                        self._watcher.told(delivery.message)
            if answers:
                self._told(answers, await self._apply(run, partial(self._meaning.of_answers, answers)))
        except CoordinationError as error:  # no such run, or one of a newer version: not to be tried again here
            log.warning("an answer that no run takes", extra={"run": run, "error": str(error)})
            await _settled(delivery.reject(str(error)) for delivery in deliveries)
        else:
            await _settled(delivery.ack() for delivery in deliveries)

    def _told(self, answers: Sequence[Message], before: RunState) -> None:
        waiting = {row.message_id: row for row in before.rows.values() if row.status == "running"}
        for message in answers:
            if message.type == MessageType.EVENT:
                self._watcher.told(message)
            else:
                self._watcher.answered(message, waiting.pop(message.in_reply_to or "", None))

    async def _apply(self, run: str, resolve: Callable[[RunState], Sequence[Incoming]]) -> RunState:
        """Take the events in; when this returns they are stored, and what follows is on its way. The state before."""
        state, commands, before = await self._runs.apply(run, resolve)
        if state is not before:
            self._watcher.stepped(state)
            self.moves.tell(run)
        if commands:
            await self.relay_soon(run)
        return before

    # -- the outbox

    async def relay_soon(self, run: str) -> None:
        """Send what was decided for a run, once at a time."""
        under_way = self._relaying.get(run)
        if under_way is not None and not under_way.done():
            await asyncio.wait([under_way])  # it may have looked before the latest was there
        if (later := self._relaying.get(run)) is None or later.done():
            task = self._relaying[run] = asyncio.create_task(self.relay(run), name=f"hivewire-relay-{run}")
            task.add_done_callback(partial(self._relayed, run))

    def _relayed(self, run: str, task: asyncio.Task[None]) -> None:
        if self._relaying.get(run) is task:
            del self._relaying[run]
        if not task.cancelled() and (error := task.exception()) is not None:
            log.warning("not sent yet; it is tried again", extra={"run": run, "error": str(error)})

    async def relay(self, run: str) -> None:
        """Send and stop what was decided for a run. When this returns, everything that could be done is done."""
        place = _FRONT
        while True:
            page, state = await self._runs.decided(run, _BATCH, place)
            if state is None:
                return
            kept = [each for each in page if not self._is_planning(each)]
            for each in kept:
                if isinstance(each.command, MakePlan):
                    self._begin_planning(run, state, each.command)
            await self._stop(run, kept)
            dispatches = [each for each in kept if isinstance(each.command, Dispatch)]
            if dispatches:
                await self._runs.sent(run, await self._send(run, state, dispatches))
            if len(page) < _BATCH:
                return
            place = page[-1].place  # what cannot be sent now keeps nothing back that stands behind it

    async def _stop(self, run: str, kept: Sequence[Kept]) -> None:
        done = []
        for each in kept:
            if isinstance(each.command, Stop):
                await stop(self._protocol, run, each.command.messages)
                done.append(each)
        if done:
            await self._runs.sent(run, done)

    async def _send(self, run: str, state: RunState, kept: Sequence[Kept]) -> list[Kept]:
        """Send those that are still wanted; returns what need not be sent any more."""
        wanted = {
            each.command.id: (each, row)
            for each in kept
            if (row := state.rows.get(_subtask(each))) is not None
            and (row.status, row.message_id) == ("running", each.command.id)  # not sent back meanwhile
        }
        done = [each for each in kept if each.command.id not in wanted]
        chosen = {name: self._choose(each, row) for name, (each, row) in wanted.items()}
        fresh = [(wanted[name][0], to) for name, to in chosen.items() if to and not wanted[name][0].recipient]
        if fresh and self._discovers:
            # Fixed before it is sent, so that another one that sends it again sends it to the same agent.
            fixed = await self._runs.route(run, fresh)
            chosen |= {each.command.id: fixed.get(each.command.id, "") for each, _ in fresh}  # "": sent meanwhile
        messages = {name: self._message(state, wanted[name][1], to) for name, to in chosen.items() if to}
        if messages:
            try:
                await self._protocol.send_many(list(messages.values()))
            except MessageError:  # one of them cannot be sent at all: find it
                for name, message in messages.items():
                    await self._send_alone(run, message, wanted[name][1])
            else:
                for message in messages.values():
                    self._watcher.sent(message)
        return done + [wanted[name][0] for name in messages]

    def _choose(self, kept: Kept, row: Row) -> str:
        if kept.recipient:
            return kept.recipient
        if not self._able(row.spec.assigned_to):
            log.info("nobody is there who can do it", extra={"capability": row.spec.assigned_to, "run": kept.run})
            return ""
        return self._team.roster.worker_for(row.spec.assigned_to, kept.command.id)

    async def _send_alone(self, run: str, message: Message, row: Row) -> None:
        try:
            await self._protocol.send(message)
        except MessageError as error:
            why = f"its message cannot be sent: {error} (large outputs belong in files, their paths in the output)"
            failed = Incoming(f"answer:{message.id}", self._meaning.failed(row, why))
            state, _, _ = await self._runs.apply(run, lambda _: [failed])
            self._watcher.stepped(state)
            self.moves.tell(run)
        else:
            self._watcher.sent(message)

    def _message(self, state: RunState, row: Row, to: str) -> Message:
        """The message of an attempt. It has the same id each time it is made, so that it may be sent again."""
        mailbox = f"{self._name}/{state.header.run}"
        return Message(
            id=row.message_id,
            type=MessageType.TASK,
            sender=self._name,
            to=to,
            content=content_of(state, row),
            key=UNORDERED,
            priority=row.spec.priority,
            metadata={"run": state.header.run, STOPS: state.header.run, **marks_of(state, row, mailbox)},
        )

    # -- plans

    def _is_planning(self, kept: Kept) -> bool:
        return kept.command.id in self._planning

    def _begin_planning(self, run: str, state: RunState, command: MakePlan) -> None:
        if self._planner is None or command.id != state.header.planning or command.id in self._planning:
            return
        task = asyncio.create_task(self._plan(run, state, command), name=f"hivewire-plan-{run}")
        self._planning[command.id] = task
        task.add_done_callback(partial(self._planned, command.id))

    def _planned(self, command: str, task: asyncio.Task[None]) -> None:
        del self._planning[command]
        if not task.cancelled() and (error := task.exception()) is not None:
            log.warning("no plan yet; it is asked for again", extra={"error": str(error)})

    async def _plan(self, run: str, state: RunState, command: MakePlan) -> None:
        """Ask the model, as the only one of all coordinators; never under the run's lock."""
        lease = await self._ledger.acquire(f"plan:{command.id}", self._owner, self._lease_s)
        if lease is None:
            return
        asking = asyncio.create_task(self._ask(state, command))
        try:
            while not (await asyncio.wait([asking], timeout=min(self._lease_s / 3, _THINKING_S)))[0]:
                lease = await self._ledger.renew(lease, self._lease_s)
                now = await self._runs.load(run)
                if now.is_finished or now.header.planning != command.id:
                    return  # cancelled, or its time is over: the model need not go on
            answer = asking.result()
        finally:
            asking.cancel()
            await asyncio.wait([asking])
        await self._apply(run, lambda _: [Incoming(f"planned:{command.id}", answer)])
        await self._ledger.release(lease)

    async def _ask(self, state: RunState, command: MakePlan) -> Planned:
        head = state.header
        request = TaskRequest(name=head.name, description=head.description, input=head.input, id=head.run)
        finished = {name: row.output for name, row in state.rows.items() if row.status == "done"}
        trouble = None
        if command.errors:
            trouble = Trouble(errors=command.errors, finished=finished, facts=head.facts, guesses=head.guesses)
        await self._met()
        known = self._described()
        if not known:  # a model would be asked, and paid, for a plan that nobody can carry out
            error = "no worker is known; start some, or name a team"
            return Planned(at=self._clock(), command=command.id, error=error)
        assert self._planner is not None
        try:
            plan = await self._planner.plan(request, known.values(), trouble)
        except HivewireError as error:
            self.model_trouble = str(error) if isinstance(error, ModelError) else ""
            return Planned(at=self._clock(), command=command.id, error=str(error))
        except Exception as error:  # of the user's own model or prompts: asked again and again, it would cost and cost
            log.exception("a planner has failed", extra={"run": head.run})
            self.model_trouble = f"{type(error).__name__}: {error}"
            return Planned(at=self._clock(), command=command.id, error=self.model_trouble)
        self.model_trouble = ""
        return Planned(
            at=self._clock(),
            command=command.id,
            subtasks=plain(plan)["subtasks"],
            capabilities=tuple(known),
            facts=plan.facts,
            guesses=plan.guesses,
        )

    # -- what nobody tells

    async def look_around(self) -> None:
        """Timers that went off, outboxes of coordinators that died, messages that died."""
        overdue, behind = await self._runs.waiting(_STALE_S, self._looked_at, _BATCH)
        for run, subtask, generation in overdue:
            timer = Incoming(f"timer:{generation}", Timer(at=self._clock(), subtask=subtask, generation=generation))
            await self._try(run, partial(_always, timer))
        self._looked_at = behind[-1] if len(behind) == _BATCH else ""  # those that must wait hide no others
        for run in behind:
            await self.relay_soon(run)
        await self._look_for_dead(self._team.roster.names)
        await self._revive()
        for run, name in await self._missing.look():
            log.warning("a message has vanished; its subtask is sent anew", extra={"run": run, "id": name})
            await self._try(run, partial(self._meaning.of_vanished, name))
        await asyncio.sleep(_LOOK_S)

    async def _try(self, run: str, resolve: Callable[[RunState], Sequence[Incoming]]) -> None:
        """A run that is gone, or of a newer version, must not keep the others waiting."""
        try:
            await self._apply(run, resolve)
        except CoordinationError as error:
            log.info("a run that cannot be looked after here", extra={"run": run, "error": str(error)})

    async def _revive(self) -> None:
        """An answer that was with several coordinators that died has used up its attempts; it is an answer still."""
        async with aclosing(self._losses.dead([self._name])) as letters:
            async for letter in letters:
                if letter.reason in _STRANDED:
                    log.warning("an answer is taken from the dead letters", extra={"id": letter.id})
                    await self._protocol.replay([letter.id])

    async def _look_for_dead(self, agents: Iterable[str]) -> None:
        async with aclosing(self._losses.dead(agents)) as letters:
            async for letter in letters:
                run = letter.message.metadata.get("run") if letter.message is not None else None
                if isinstance(run, str):
                    await self._try(run, partial(self._meaning.of_dead, letter.id, self._losses.why(letter)))

    def _able(self, capability: str) -> Sequence[str]:
        return self._team.roster.capabilities.get(capability, ())


def _always(event: Incoming, state: RunState) -> list[Incoming]:
    """The event, whatever the state is."""
    return [event]


def _subtask(kept: Kept) -> str:
    return kept.command.subtask if isinstance(kept.command, Dispatch) else ""


async def _settled(settlements: Iterable[Awaitable[None]]) -> None:
    for outcome in await asyncio.gather(*settlements, return_exceptions=True):
        if isinstance(outcome, DeliveryError):
            log.info("an answer comes again; it is known already")
        elif outcome is not None:
            raise outcome
