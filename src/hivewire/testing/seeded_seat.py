"""One of the three members: the process that sits there now, its protocol, and what it serves."""

from __future__ import annotations

import asyncio
from datetime import datetime
from functools import partial
from typing import Final, Literal

from hivewire.delivery import Delivery
from hivewire.engine.delivery import EngineDelivery
from hivewire.engine.protocol import Engine
from hivewire.errors import BackendError, Closed, ConnectionLost, HivewireError, LeaseLost, Reject, RetryAfter
from hivewire.protocol import ProtocolMetrics
from hivewire.record import VOLATILE_SHARD, lane_of
from hivewire.testing.profiles_faults import ProcessIsDead, Wire
from hivewire.testing.seeded_book import Effect, Sent, Started
from hivewire.testing.seeded_process import Died, SimulatedProcess, Stage
from hivewire.testing.seeded_program import COMPETING, LEASE_S, MAX_ATTEMPTS

SHARDS: Final = 4
_DRAIN_S: Final = 3.0
_REOPEN_S: Final = 0.2
_LARGE_BYTES: Final = 2_000
RETURN_S: Final = 60.0
"""No call may take longer, whatever strikes it."""


def content_of(sent: Sent) -> str:
    return sent.id.ljust(_LARGE_BYTES, ".") if sent.is_large else sent.id


class _Serving:
    """An agent that is being served."""

    def __init__(self, task: asyncio.Task[None], stop: asyncio.Future[None]) -> None:
        self.task = task
        self.stop = stop


class Seat(SimulatedProcess):
    """A member, and what it serves, also after it was born again."""

    def __init__(self, slot: int, stage: Stage, *, has_whole_trail: bool) -> None:
        super().__init__(
            slot,
            stage,
            lease_s=LEASE_S,
            max_attempts=MAX_ATTEMPTS,
            retry_first_s=0.2,
            retry_most_s=1.0,
            shards=SHARDS,
            claim_check_bytes=_LARGE_BYTES // 2,
            trail="all" if has_whole_trail else "trouble",
        )
        self.wanted: dict[str, tuple[Literal["serve", "receive"], int]] = {}
        self.metrics: list[ProtocolMetrics] = []
        """Of the protocols that were closed in peace."""
        self._serving: dict[str, _Serving] = {}

    def _sit_down(self) -> None:
        self._serving = {}
        for agent, (by, concurrency) in self.wanted.items():
            self._begin(agent, by, concurrency)

    def _killed(self) -> None:
        self._serving = {}  # nobody is to wait for what stands still for ever
        for started in self.stage.book.started:
            if started.process == self.name and started.ended_at is None:
                started.ended_at, started.outcome = self.stage.loop.time(), "killed"

    async def close(self) -> None:
        """Close the protocol in peace."""
        name = ""
        while not (self._alive.is_set() and self.name == name):  # the next process serves, too
            await self.until_alive()
            name, wanted = self.name, dict(self.wanted)
            for agent in list(self._serving):
                await self.rest(agent)
            self.wanted = wanted
        try:
            await self.do(lambda engine: engine.close(_DRAIN_S), within_s=RETURN_S)
        except Died:
            return
        except TimeoutError:
            self.stage.book.errors.append(f"close of {self.name} did not return within {RETURN_S} s")
        assert self._engine is not None
        self.metrics.append(self._engine.metrics())
        self._alive.clear()
        self.stage.book.write(self.stage.loop.time(), "closed", self.name)

    async def reopen(self) -> None:
        """After `close`: a new process."""
        if not self._alive.is_set() and (self._wire is None or not self._wire.is_cut):
            await self.open()

    # Serving

    async def serve(self, agent: str, by: Literal["serve", "receive"], concurrency: int) -> None:
        self.wanted[agent] = (by, concurrency)
        await self.until_alive()
        if agent not in self._serving:
            self._begin(agent, by, concurrency)

    def _begin(self, agent: str, by: Literal["serve", "receive"], concurrency: int) -> None:
        assert self._engine is not None
        assert self._wire is not None
        stop = self.stage.loop.create_future()
        work = self._served if by == "serve" else self._received
        task = self.stage.loop.create_task(
            work(self._engine, self._wire, agent, concurrency, stop), context=self._context.copy(), name=f"{by} {agent}"
        )
        self._serving[agent] = _Serving(task, stop)

    async def rest(self, agent: str) -> None:
        """Stop serving the agent, in peace."""
        self.wanted.pop(agent, None)
        serving = self._serving.pop(agent, None)
        if serving is None:
            return
        # Set in the process's own context: a stopped one learns of it later.
        self._context.copy().run(serving.stop.set_result, None)
        ends: list[asyncio.Future[None]] = [serving.task, self._died]
        done, _ = await asyncio.wait(ends, timeout=RETURN_S, return_when=asyncio.FIRST_COMPLETED)
        if not done:
            self.stage.book.errors.append(f"{serving.task.get_name()} in {self.name} did not end within {RETURN_S} s")

    async def _served(
        self, engine: Engine, wire: Wire, agent: str, concurrency: int, stop: asyncio.Future[None]
    ) -> None:
        while not stop.done():
            try:
                await engine.serve(
                    agent,
                    lambda delivery: self._handle(wire, agent, delivery),
                    concurrency=concurrency,
                    stop=stop,
                    drain_s=_DRAIN_S,
                )
            except Closed:
                return
            except ProcessIsDead:
                return
            except BackendError:
                await asyncio.sleep(_REOPEN_S)
            except HivewireError as error:
                self._wrong(wire, f"serve {agent}", error)
                return

    async def _received(
        self, engine: Engine, wire: Wire, agent: str, concurrency: int, stop: asyncio.Future[None]
    ) -> None:
        while not stop.done():
            try:
                deliveries = await engine.receive(agent, limit=concurrency, wait_s=0.5)
            except (Closed, ProcessIsDead):
                return
            except BackendError:
                await asyncio.sleep(_REOPEN_S)
                continue
            # They count as started when they are handed out: from there on nobody asks for the lease.
            started = [self._note_start(agent, delivery, wire.name) for delivery in deliveries]
            if len(deliveries) == 1:
                await self._within(wire, agent, deliveries[0], started[0])
            elif deliveries:
                await asyncio.gather(*map(partial(self._within, wire, agent), deliveries, started))

    async def _within(self, wire: Wire, agent: str, delivery: Delivery, started: Started) -> None:
        try:
            async with delivery:
                await self._handle(wire, agent, delivery, started)
        except LeaseLost:
            started.refused_at = self.stage.loop.time()
        except (Closed, Failure, RetryAfter, Reject):
            return
        except HivewireError as error:
            self._wrong(wire, f"receive {agent}", error)
        finally:
            if started.ended_at is None:  # it was lost before the handler began
                started.ended_at, started.outcome = self.stage.loop.time(), "lost"

    def _wrong(self, wire: Wire, doing: str, error: BaseException) -> None:
        if not wire.is_cut:
            self.stage.book.errors.append(f"{wire.name} {doing}: {error!r}")

    async def _handle(self, wire: Wire, agent: str, delivery: Delivery, started: Started | None = None) -> None:
        """What the program's script says for this start of this message."""
        stage = self.stage
        if wire.is_cut:
            raise ConnectionLost(f"{wire.name} is dead")
        if started is None:
            started = self._note_start(agent, delivery, wire.name)
        outcome = "lost"
        try:
            await wire.at_handler("early")
            outcome = await self._play(agent, delivery, started)
            if outcome == "ok" and delivery.message.metadata.get("reply_to"):
                outcome = await self._reply(delivery)
            await wire.at_handler("late")
        except asyncio.CancelledError:
            outcome = "cancelled"
            raise
        finally:
            if started.ended_at is None:
                started.ended_at, started.outcome = stage.loop.time(), outcome
                stage.book.write(stage.loop.time(), "end", wire.name, agent, started.id, outcome)
        if outcome == "raise":
            raise Failure(f"{started.id} fails as planned")
        if outcome == "after":
            raise RetryAfter(0.3)
        if outcome == "reject":
            raise Reject("as planned")

    async def _reply(self, delivery: Delivery) -> str:
        assert self._engine is not None
        try:
            await self._engine.reply(delivery.message, delivery.message.id)
        except (BackendError, Closed):
            return "raise"
        return "ok"

    async def _play(self, agent: str, delivery: Delivery, started: Started) -> str:
        sent = self.stage.book.sent.get(started.id)
        if sent is not None and delivery.message.content != content_of(sent):
            self.stage.book.errors.append(f"{started.id} came with another content than it was sent with")
        script = sent.script if sent is not None else ("ok",)
        number = self.stage.book.starts[agent, started.id, started.replay]
        planned = script[min(number, len(script)) - 1]
        await self.stage.loop.pause(0.05 + 0.4 * self.stage.chance.random() if planned == "slow" else 0.001)
        if sent is not None and sent.has_effect and not await self._do_once(started):
            return "raise"
        return "ok" if planned == "slow" else planned

    async def _do_once(self, started: Started) -> bool:
        """The effect of a message, if nobody has done it. False: it is not known."""
        engine, book, loop = self._engine, self.stage.book, self.stage.loop
        assert engine is not None
        began_at = loop.time()

        async def act() -> str:
            book.effects.append(Effect(loop.time(), started.process, started.id, began_at))
            return started.id

        async def find() -> str | None:
            return next((effect.id for effect in book.effects if effect.id == started.id), None)

        try:
            result = await engine.once(started.agent, started.id, act, find)
        except (BackendError, LeaseLost, Closed):
            return False
        if result != started.id:
            book.errors.append(f"the effect of {started.id} gave {result!r}")
        return True

    def _note_start(self, agent: str, delivery: Delivery, name: str) -> Started:
        stage, message = self.stage, delivery.message
        record = delivery.fetched.record if isinstance(delivery, EngineDelivery) else None
        key = lane_of(record, competing=agent in COMPETING) if record is not None else message.id
        volatile = isinstance(delivery, EngineDelivery) and delivery.fetched.shard == VOLATILE_SHARD
        replay = int(getattr(delivery, "replay", 0))
        planned = stage.book.planned.get(str(message.metadata.get("schedule")))
        if planned is not None and planned.agent == agent:
            due = datetime.fromisoformat(str(message.metadata["due_at"])).timestamp()
            planned.due_at[message.id] = due
        started = Started(
            at=stage.loop.time(),
            process=name,
            slot=self.slot,
            agent=agent,
            id=message.id,
            key=key,
            replay=replay,
            attempt=delivery.attempt,
            is_owner=volatile or stage.world.owns(name, agent, key),
        )
        if volatile:
            stage.book.heard.append(started)
        else:
            stage.book.started.append(started)
            stage.book.starts[agent, message.id, replay] += 1
        stage.book.write(started.at, "start", name, agent, message.id, delivery.attempt, replay)
        return started


class Failure(Exception):
    """A handler fails, as the program says."""
