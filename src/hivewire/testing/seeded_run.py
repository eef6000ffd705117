"""Runs a program: three members over one simulated store, struck by faults, then healed and drained."""

from __future__ import annotations

import asyncio
import logging
from functools import partial
from random import Random
from typing import Any, Final
from unittest.mock import patch

import msgspec

from hivewire.backend import Mode, QueueSpec
from hivewire.engine import outcomes
from hivewire.engine.groups import GROUP_QUEUE_PREFIX
from hivewire.engine.subscriptions import GROUP_PREFIX
from hivewire.errors import BackendError, Closed, HivewireError
from hivewire.message import REPLY_PREFIX, Message
from hivewire.protocol import Protocol, ProtocolMetrics
from hivewire.rules import lanes
from hivewire.testing.profiles import make_world
from hivewire.testing.profiles_faults import Fault, Faults, ProcessIsDead
from hivewire.testing.profiles_world import World
from hivewire.testing.seeded_book import Book, Membership, Planned, Sent, Told
from hivewire.testing.seeded_process import Died, Stage, strike
from hivewire.testing.seeded_program import (
    AGENTS,
    COMPETING,
    GROUP,
    LISTENERS,
    SLOTS,
    AnyStep,
    Ask,
    Broadcast,
    Join,
    Leave,
    Plan,
    Program,
    Purge,
    Reopen,
    Replay,
    Resend,
    Rest,
    Send,
    Serve,
    Shout,
)
from hivewire.testing.seeded_seat import RETURN_S, SHARDS, Seat, content_of
from hivewire.testing.virtual_loop import VirtualLoop
from hivewire.testing.virtual_time import run_virtual, seeded_ids

DRAIN_S: Final = 15.0
"""After the faults have stopped, everything must be settled within this time."""
_SEND_TIMEOUT_S: Final = 20.0
_MOST_STEPS: Final = 100_000
"""A run has about 10,000 callbacks."""


class Result(msgspec.Struct):
    """What a run left behind."""

    program: Program
    book: Book
    world: World
    struck: list[Fault]
    metrics: list[ProtocolMetrics]
    """Of every protocol that was closed in peace."""
    steps: int
    """Callbacks that the loop ran."""
    left: dict[str, int]
    """Messages that were not settled in the end, by queue."""


class Runner:
    """One run of one program."""

    def __init__(self, program: Program) -> None:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, VirtualLoop)
        chance = Random(f"run/{program.profile}/{program.seed}/{program.draw}")
        faults = Faults(program.faults)
        self.program = program
        self.loop = loop
        world = make_world(program.profile, faults, chance)
        for agent in AGENTS + COMPETING:
            mode: Mode = "competing" if agent in COMPETING else "ordered"
            world.declare(QueueSpec(name=agent, mode=mode, shards=SHARDS, cap=program.cap))
        self.stage = Stage(loop, world, faults, chance)
        self.book = self.stage.book
        self.seats = [Seat(slot, self.stage, has_whole_trail=program.has_whole_trail) for slot in range(SLOTS)]
        self._begun = 0
        strike(faults, self.seats, self.stage)
        faults.revoke = lambda name, length_s: self.stage.world.move_some(name)

    async def run(self) -> Result:
        """Everything, from the first step to the last check's data."""
        with ErrorsOf(self.book):
            return await self._run()

    async def _run(self) -> Result:
        self.loop.set_exception_handler(self._unexpected)
        await asyncio.gather(*(seat.open() for seat in self.seats))
        await asyncio.gather(*(self._act(slot) for slot in range(SLOTS)))
        self.stage.faults.heal()
        await self._end_schedules()
        await self._all_serve()
        left = await self._drain()
        for seat in self.seats:
            await seat.close()
        for seat in self.seats:
            await seat.bury()
        return Result(
            program=self.program,
            book=self.book,
            world=self.stage.world,
            struck=self.stage.faults.struck,
            metrics=[metrics for seat in self.seats for metrics in seat.metrics],
            steps=self.loop.steps,
            left=left,
        )

    def _unexpected(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        error = context.get("exception")
        if not isinstance(error, ProcessIsDead):  # nobody is left to look at what a killed process still did
            self.book.errors.append(f"{context.get('message')}: {error!r}")

    async def _act(self, slot: int) -> None:
        """The steps of one slot, one after another, whichever process sits there."""
        for step in self.program.steps:
            if step.slot == slot:
                await asyncio.sleep(step.pause_s)
                self._begun += 1
                self.stage.faults.arm(self._begun)
                await self._step(self.seats[slot], step)

    async def _all_serve(self) -> None:
        for seat in self.seats:
            for agent in AGENTS + COMPETING + LISTENERS:
                await seat.serve(agent, "serve", 4)

    async def _drain(self) -> dict[str, int]:
        until = self.loop.time() + DRAIN_S
        while True:
            queues = [name for name in self.stage.world.specs if not name.startswith(REPLY_PREFIX)]
            left = {name: held for name in queues if (held := self.stage.world.held(name))}
            if not self._has_members():
                left.pop(GROUP_QUEUE_PREFIX + GROUP, None)  # nobody takes part in a group that is empty
            if not left or self.loop.time() >= until:
                return left
            await asyncio.sleep(0.25)

    def _has_members(self) -> bool:
        entry = self.stage.world.get(GROUP_PREFIX + GROUP)
        return bool(entry.value and msgspec.json.decode(entry.value)["members"])

    # The steps

    async def _step(self, seat: Seat, step: AnyStep) -> None:
        match step:
            case Send():
                await self._send(seat, step)
            case Resend():
                await self._resend(seat, step)
            case Ask():
                await self._ask(seat, step)
            case Broadcast():
                await self._broadcast(seat, step)
            case Shout():
                await self._broadcast(seat, step)
            case Join():
                await self._subscribe(seat, step.listener, joins=True)
            case Leave():
                await self._subscribe(seat, step.listener, joins=False)
            case Serve():
                await seat.serve(step.agent, step.by, step.concurrency)
            case Rest():
                await seat.rest(step.agent)
            case Reopen():
                await seat.close()
                await seat.reopen()
            case Replay():
                await self._replay(seat, step)
            case Purge():
                await self._try(seat, f"purge {step.agent}", lambda protocol: protocol.purge_dead(step.agent))
            case Plan():
                await self._plan(seat, step)

    async def _try(self, seat: Seat, what: str, work: Any) -> Any:
        """The result, or None when the outcome is unknown."""
        try:
            return await seat.do(work, within_s=RETURN_S)
        except TimeoutError:
            self.book.errors.append(f"{what} did not return within {RETURN_S} s")
            return None
        except (Died, BackendError, Closed) as error:
            self.book.write(self.loop.time(), "unknown", what, type(error).__name__)
            return None
        except HivewireError as error:
            self.book.errors.append(f"{what}: {error!r}")
            return None

    async def _send(self, seat: Seat, step: Send) -> None:
        messages = []
        for id in step.ids:
            self.book.sent[id] = Sent(
                id=id,
                agent=step.agent,
                key=id if step.agent in COMPETING else step.key,
                number=len(self.book.sent),
                script=step.script,
                delay_s=step.delay_s,
                ttl_s=step.ttl_s,
                idempotency_key=step.idempotency_key,
                is_large=step.is_large,
                has_effect=step.has_effect,
                began_at=self.loop.time(),
            )
            messages.append(self._message(self.book.sent[id]))
        if len(messages) > 1:
            await self._send_many(seat, messages)
        else:
            await self._send_one(seat, messages[0])

    def _message(self, sent: Sent) -> Message:
        return Message(
            type="task",
            sender="driver",
            to=sent.agent,
            content=content_of(sent),
            id=sent.id,
            key=sent.key,
            ttl_s=sent.ttl_s,
        )

    async def _send_one(self, seat: Seat, message: Message) -> None:
        sent = self.book.sent[message.id]

        async def work(protocol: Protocol) -> str:
            receipt = await protocol.send(
                message, delay_s=sent.delay_s, idempotency_key=sent.idempotency_key, timeout_s=_SEND_TIMEOUT_S
            )
            return receipt.id

        sent.tries += 1
        receipt = await self._try(seat, f"send {message.id}", work)
        if receipt is not None:
            self._confirm(sent, receipt)

    async def _send_many(self, seat: Seat, messages: list[Message]) -> None:
        async def work(protocol: Protocol) -> list[str]:
            receipts = await protocol.send_many(messages, timeout_s=_SEND_TIMEOUT_S)
            return [receipt.id for receipt in receipts]

        for message in messages:
            self.book.sent[message.id].tries += 1
        receipts = await self._try(seat, f"send {messages[0].id} …", work)
        for message, receipt in zip(messages, receipts or (), strict=False):
            self._confirm(self.book.sent[message.id], receipt)

    def _confirm(self, sent: Sent, receipt: str) -> None:
        sent.receipt = receipt
        if sent.confirmed_at is None:
            sent.confirmed_at = self.loop.time()
            sent.is_in_order = sent.tries == 1 and receipt == sent.id
        self.book.write(self.loop.time(), "confirmed", sent.id, receipt)

    async def _resend(self, seat: Seat, step: Resend) -> None:
        if step.of in self.book.sent:
            await self._send_one(seat, self._message(self.book.sent[step.of]))

    async def _ask(self, seat: Seat, step: Ask) -> None:
        sent = self.book.sent[step.id] = Sent(
            id=step.id,
            agent=step.agent,
            key=step.id if step.agent in COMPETING else step.key,
            number=len(self.book.sent),
            script=step.script,
            began_at=self.loop.time(),
            tries=1,
        )
        message = msgspec.structs.replace(self._message(sent), key=step.key)

        async def work(protocol: Protocol) -> Message:
            return await protocol.request(message, timeout_s=step.timeout_s)

        reply = await self._try(seat, f"ask {step.id}", work)
        if reply is not None:
            sent.confirmed_at = self.loop.time()
            self.book.answers[step.id] = reply.content if reply.in_reply_to == step.id else None
            self.book.write(self.loop.time(), "answered", step.id)

    async def _broadcast(self, seat: Seat, step: Broadcast | Shout) -> None:
        durable = isinstance(step, Broadcast)
        told = Told(step.id, self.loop.time())
        (self.book.told if durable else self.book.shouted)[step.id] = told
        message = Message(type="event", sender="driver", content=step.id, id=step.id, key="news")

        async def work(protocol: Protocol) -> str:
            return (await protocol.broadcast(message, GROUP, durable=durable)).id

        if await self._try(seat, f"broadcast {step.id}", work) is not None:
            told.confirmed_at = self.loop.time()

    async def _subscribe(self, seat: Seat, listener: str, *, joins: bool) -> None:
        membership = Membership(listener, joins, self.loop.time())
        self.book.memberships.append(membership)

        async def work(protocol: Protocol) -> bool:
            if joins:
                await protocol.subscribe(listener, groups=[GROUP])
            else:
                await protocol.unsubscribe(listener, groups=[GROUP])
            return True

        if await self._try(seat, f"{'join' if joins else 'leave'} {listener}", work):
            membership.done_at = self.loop.time()

    async def _plan(self, seat: Seat, step: Plan) -> None:
        planned = self.book.planned[step.name] = Planned(step.name, step.agent, step.every_s)
        message = Message(type="task", sender="driver", to=step.agent, key="plans")

        async def work(protocol: Protocol) -> bool:
            await protocol.schedule(step.name, step.every_s, message, catch_up="all")
            return True

        if await self._try(seat, f"schedule {step.name}", work):
            planned.confirmed_at = self.loop.time()

    async def _end_schedules(self) -> None:
        for name in self.book.planned:
            what = f"unschedule {name}"
            while await self._try(self.seats[0], what, partial(_unschedule, name)) is None:
                self.book.write(self.loop.time(), "once more", what)

    async def _replay(self, seat: Seat, step: Replay) -> None:
        async def work(protocol: Protocol) -> int:
            return await protocol.replay(step.agent)

        count = await self._try(seat, f"replay {step.agent}", work)
        self.book.replayed[step.agent] = self.book.replayed.get(step.agent, 0) + (count or 0)


class ErrorsOf(logging.Handler):
    """While this lasts, what the package logs as an error breaks a promise, too."""

    def __init__(self, book: Book) -> None:
        super().__init__(logging.ERROR)
        self._book = book
        self._log = logging.getLogger("hivewire")
        self._level = self._log.level

    def __enter__(self) -> None:
        self._log.addHandler(self)
        self._log.setLevel(logging.ERROR)

    def __exit__(self, *_: object) -> None:
        self._log.setLevel(self._level)
        self._log.removeHandler(self)

    def emit(self, record: logging.LogRecord) -> None:
        error = record.exc_info[1] if record.exc_info else None
        if isinstance(error, ProcessIsDead):
            return
        task = record.__dict__.get("task", "")
        self._book.errors.append(f"{record.name}: {record.getMessage()} {task} {error!r}")


async def _unschedule(name: str, protocol: Protocol) -> bool:
    return await protocol.unschedule(name)


def run_program(program: Program) -> Result:
    """Run it on a virtual loop: a pure function of the program."""
    short = 2 if program.seed % 2 else lanes.LONG_LANE  # every other seed has lanes that are parked
    with (
        seeded_ids(program.seed),
        patch.object(lanes, "LONG_LANE", short),
        patch.object(outcomes, "LONG_LANE", short),
    ):
        return run_virtual(_run(program), loop=VirtualLoop(_MOST_STEPS))


async def _run(program: Program) -> Result:
    return await Runner(program).run()
