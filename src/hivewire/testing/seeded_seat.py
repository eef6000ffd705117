"""One of the three members: the process that sits there now, its protocol, and what it serves."""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Callable, Coroutine
from functools import partial
from random import Random
from typing import Any, Final, Literal, TypeVar

from hivewire.delivery import Delivery
from hivewire.engine.delivery import EngineDelivery
from hivewire.engine.protocol import Engine
from hivewire.errors import BackendError, Closed, ConnectionLost, HivewireError, LeaseLost, Reject, RetryAfter
from hivewire.protocol import Protocol, ProtocolMetrics
from hivewire.record import VOLATILE_SHARD, lane_of
from hivewire.settings import Settings
from hivewire.testing.profiles import connect
from hivewire.testing.profiles_faults import Faults, ProcessIsDead, Wire
from hivewire.testing.profiles_world import World
from hivewire.testing.seeded_book import Book, Outage, Started
from hivewire.testing.seeded_program import COMPETING, LEASE_S, MAX_ATTEMPTS
from hivewire.testing.virtual_time import VirtualLoop, process

SHARDS: Final = 4
_DRAIN_S: Final = 3.0
_REOPEN_S: Final = 0.2
RETURN_S: Final = 60.0
"""No call may take longer, whatever strikes it."""
_T = TypeVar("_T")


class Died(Exception):
    """The process was killed while it was at work."""


class Stage:
    """What all seats of one run share."""

    def __init__(self, loop: VirtualLoop, world: World, faults: Faults, chance: Random) -> None:
        self.loop = loop
        self.world = world
        self.faults = faults
        self.chance = chance
        self.book = Book()
        self.context = contextvars.copy_context()
        """That of the driver: nothing in it stands still when a process is stopped."""


class _Serving:
    """An agent that is being served."""

    def __init__(self, task: asyncio.Task[None], stop: asyncio.Event) -> None:
        self.task = task
        self.stop = stop


class Seat:
    """A slot of the program. Processes come and go; the slot stays."""

    def __init__(self, slot: int, stage: Stage) -> None:
        self.slot = slot
        self.stage = stage
        self.name = ""
        self.wanted: dict[str, tuple[Literal["serve", "receive"], int]] = {}
        """What a process here serves, also after it was born again."""
        self.metrics: list[ProtocolMetrics] = []
        """Of the protocols that were closed in peace."""
        self._lives = 0
        self._engine: Engine | None = None
        self._wire: Wire | None = None
        self._context = stage.context
        self._serving: dict[str, _Serving] = {}
        self._died: asyncio.Future[None] = stage.loop.create_future()
        self._alive = asyncio.Event()
        self._graves: dict[str, list[asyncio.Task[Any]]] = {}
        """Killed processes, with their tasks: nobody else keeps those alive."""

    # Birth and death

    async def open(self) -> None:
        """A new process sits down and serves what this slot is to serve."""
        self._lives += 1
        self.name = f"m{self.slot}.{self._lives}"
        self._died = self.stage.loop.create_future()
        self._context = self.stage.context.copy()
        self._context.run(process.set, self.name)
        wire = self._wire = Wire(self.stage.faults, self.stage.chance, self.name, self.slot)
        settings = Settings(
            protocol="inmemory",
            lease_s=LEASE_S,
            max_attempts=MAX_ATTEMPTS,
            retry_first_s=0.2,
            retry_most_s=1.0,
            shards=SHARDS,
            worker_name=self.name,
        )
        self.stage.book.write(self.stage.loop.time(), "born", self.name)

        async def enter() -> Engine:
            while True:
                # Chance of its own: how often others draw must not change what this one does.
                engine = Engine(settings, connect(self.stage.world, wire), rng=Random(self.name))
                try:
                    return await engine.__aenter__()
                except ProcessIsDead:
                    raise
                except BackendError:
                    await asyncio.sleep(_REOPEN_S)

        try:
            self._engine = await self._in_process(enter())
        except Died:
            return
        self._serving = {}
        self._alive.set()
        for agent, (by, concurrency) in self.wanted.items():
            self._begin(agent, by, concurrency)

    def crash(self, length_s: float) -> None:
        """As kill -9; after a while a new process takes the seat."""
        loop, book = self.stage.loop, self.stage.book
        if self._wire is None or self._wire.is_cut:
            return
        book.write(loop.time(), "crash", self.name)
        self._wire.is_cut = True
        self._alive.clear()
        self._graves[self.name] = loop.tasks_of(self.name)
        loop.stop_process(self.name)
        book.outages.append(Outage(self.name, loop.time()))
        for started in book.started:
            if started.process == self.name and started.ended_at is None:
                started.ended_at, started.outcome = loop.time(), "killed"
        if not self._died.done():
            self._died.set_result(None)
        loop.call_later(length_s, self._reborn, context=self.stage.context)

    def _reborn(self) -> None:
        self._birth = self.stage.loop.create_task(self.open())

    def freeze(self, length_s: float) -> None:
        """As SIGSTOP, and SIGCONT after a while."""
        loop = self.stage.loop
        if loop.is_stopped(self.name):
            return
        self.stage.book.write(loop.time(), "freeze", self.name, f"{length_s:.3f}")
        outage = Outage(self.name, loop.time())
        self.stage.book.outages.append(outage)
        loop.stop_process(self.name)
        name = self.name

        def thaw() -> None:
            if name not in self._graves and loop.is_stopped(name):
                self.stage.book.write(loop.time(), "thaw", name)
                outage.ended_at = loop.time()
                loop.continue_process(name)

        loop.call_later(length_s, thaw, context=self.stage.context)

    async def bury(self) -> None:
        """Let the tasks of killed processes end, so that nothing is left of them."""
        for name, tasks in self._graves.items():
            for task in tasks:
                task.cancel()
            self.stage.loop.continue_process(name)
            for _ in range(10):
                left = self.stage.loop.tasks_of(name)
                if not left:
                    break
                await asyncio.wait(left, timeout=30.0)
                for task in self.stage.loop.tasks_of(name):
                    task.cancel()
            else:
                self.stage.book.errors.append(f"tasks of {name} cannot be cancelled: {left}")

    # Work in the process

    async def _in_process(self, work: Coroutine[Any, Any, _T]) -> _T:
        task = self.stage.loop.create_task(work, context=self._context.copy())
        died = self._died
        ends: list[asyncio.Future[Any]] = [task, died]
        await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise Died(self.name)
        return task.result()

    async def do(self, work: Callable[[Protocol], Coroutine[Any, Any, _T]]) -> _T:
        """Something for the process that sits here. Raises `Died` if it is killed meanwhile."""
        await self._alive.wait()
        assert self._engine is not None
        return await self._in_process(work(self._engine))

    async def until_alive(self) -> None:
        await self._alive.wait()

    async def close(self) -> None:
        """Close the protocol in peace."""

        async def leave(engine: Protocol) -> None:
            try:
                async with asyncio.timeout(RETURN_S):
                    await engine.close(_DRAIN_S)
            except TimeoutError:
                self.stage.book.errors.append(f"close of {self.name} did not return within {RETURN_S} s")

        name = ""
        while not (self._alive.is_set() and self.name == name):  # the next process serves, too
            await self.until_alive()
            name, wanted = self.name, dict(self.wanted)
            for agent in list(self._serving):
                await self.rest(agent)
            self.wanted = wanted
        try:
            await self.do(leave)
        except Died:
            return
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
        stop = asyncio.Event()
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
        self._context.copy().run(serving.stop.set)
        ends: list[asyncio.Future[None]] = [serving.task, self._died]
        done, _ = await asyncio.wait(ends, timeout=RETURN_S, return_when=asyncio.FIRST_COMPLETED)
        if not done:
            self.stage.book.errors.append(f"{serving.task.get_name()} in {self.name} did not end within {RETURN_S} s")

    async def _served(self, engine: Engine, wire: Wire, agent: str, concurrency: int, stop: asyncio.Event) -> None:
        while not stop.is_set():
            stopper = asyncio.create_task(stop.wait())
            try:
                await engine.serve(
                    agent,
                    lambda delivery: self._handle(wire, agent, delivery),
                    concurrency=concurrency,
                    stop=stopper,
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
            finally:
                stopper.cancel()

    async def _received(self, engine: Engine, wire: Wire, agent: str, concurrency: int, stop: asyncio.Event) -> None:
        while not stop.is_set():
            try:
                deliveries = await engine.receive(agent, limit=concurrency, wait_s=0.5)
            except (Closed, ProcessIsDead):
                return
            except BackendError:
                await asyncio.sleep(_REOPEN_S)
                continue
            # They count as started when they are handed out: from there on nobody asks for the lease.
            started = [self._note_start(agent, delivery, wire.name) for delivery in deliveries]
            await asyncio.gather(*map(partial(self._within, wire, agent), deliveries, started))

    async def _within(self, wire: Wire, agent: str, delivery: Delivery, started: Started) -> None:
        try:
            async with delivery:
                await self._handle(wire, agent, delivery, started)
        except (LeaseLost, Closed, Failure, RetryAfter, Reject):
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
        script = sent.script if sent is not None else ("ok",)
        number = sum(
            one.agent == agent and one.id == started.id and one.replay == started.replay
            for one in self.stage.book.started
        )
        planned = script[min(number, len(script)) - 1]
        await asyncio.sleep(0.05 + 0.4 * self.stage.chance.random() if planned == "slow" else 0.001)
        return "ok" if planned == "slow" else planned

    def _note_start(self, agent: str, delivery: Delivery, name: str) -> Started:
        stage, message = self.stage, delivery.message
        record = delivery.fetched.record if isinstance(delivery, EngineDelivery) else None
        key = lane_of(record, competing=agent in COMPETING) if record is not None else message.id
        volatile = isinstance(delivery, EngineDelivery) and delivery.fetched.shard == VOLATILE_SHARD
        replay = int(getattr(delivery, "replay", 0))
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
        (stage.book.heard if volatile else stage.book.started).append(started)
        stage.book.write(started.at, "start", name, agent, message.id, delivery.attempt, replay)
        return started


class Failure(Exception):
    """A handler fails, as the program says."""
