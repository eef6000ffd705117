"""Runs a program of the simulation: two coordinators and two workers over one simulated store and one ledger, struck
by faults, then healed, until every run has come to its end."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from functools import lru_cache
from random import Random
from typing import Any, Final, TypeVar

import msgspec

from hivewire.backend import QueueSpec
from hivewire.coordination.coordinator import Coordinator
from hivewire.coordination.ledger import run_log, run_scripts
from hivewire.coordination.ledger.model import HistoryEntry
from hivewire.coordination.ledger.run_log import LogEntry
from hivewire.coordination.ledger.sqlite import MemoryStore
from hivewire.coordination.ledger.store import Query, Row, Script
from hivewire.coordination.ledger.stored import StoredLedger
from hivewire.coordination.ledger.task_scripts import history
from hivewire.coordination.tasks import TaskRequest
from hivewire.errors import BackendError, Closed
from hivewire.rules.plan_state import RunState
from hivewire.testing.profiles import make_world
from hivewire.testing.profiles_faults import Fault, Faults
from hivewire.testing.profiles_world import World
from hivewire.testing.seeded_book import Book
from hivewire.testing.seeded_process import Died, Stage, strike
from hivewire.testing.seeded_run import ErrorsOf
from hivewire.testing.simulated_book import Ledgerbook, Seen
from hivewire.testing.simulated_program import (
    COORDINATORS,
    FAULTS_TO_STRIKE,
    LEAST_OPERATIONS,
    RUNS,
    TEAM,
    WORKERS,
    Cancel,
    Program,
    Start,
    Watch,
)
from hivewire.testing.simulated_seats import CoordinatorSeat, WorkerSeat
from hivewire.testing.virtual_loop import VirtualLoop
from hivewire.testing.virtual_time import run_virtual, seeded_ids

T = TypeVar("T")

TROUBLE_S: Final = 40.0
"""So long faults may strike, if the runs last as long."""
DRAIN_S: Final = 60.0
"""After the faults have stopped, every run must come to its end within this time."""
_MOST_STEPS: Final = 600_000
_QUEUES: Final = (*TEAM, "coordinator")


class Result(msgspec.Struct):
    """What a simulation left behind."""

    program: Program
    book: Book
    ledgerbook: Ledgerbook
    world: World
    struck: list[Fault]
    states: dict[str, RunState]
    logs: dict[str, list[LogEntry]]
    histories: dict[str, dict[str, list[HistoryEntry]]]
    """By run and subtask: what the ledger tells of the task."""
    left: dict[str, int]
    """Rows and messages that must be gone in the end, by table and queue."""
    steps: int


class Simulation:
    """One run of one program."""

    def __init__(self, program: Program) -> None:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, VirtualLoop)
        chance = Random(f"simulation/{program.profile}/{program.seed}/{program.draw}")
        faults = Faults(program.faults)
        world = make_world(program.profile, faults, chance)
        for queue in _QUEUES:
            world.declare(QueueSpec(name=queue, mode="ordered" if queue == "bee" else "competing", shards=2))
        self.program = program
        self.loop = loop
        self.stage = Stage(loop, world, faults, chance)
        self.book = self.stage.book
        self.ledgerbook = Ledgerbook()
        self.ledgerbook.arm = faults.arm
        self.store = MemoryStore(clock=loop.wall_time)
        self._runs = RUNS
        self._is_over = False
        rest = (self.stage, program, self.store, self.ledgerbook)
        self.coordinators = [CoordinatorSeat(slot, *rest) for slot in range(COORDINATORS)]
        self.workers = [WorkerSeat(slot, *rest) for slot in range(COORDINATORS, COORDINATORS + WORKERS)]
        self.seats = [*self.coordinators, *self.workers]
        strike(faults, self.seats, self.stage)

    async def run(self) -> Result:
        """Everything, from the first step to the last check's data."""
        self.loop.set_exception_handler(self._unexpected)
        await self.store.open()
        self.store.load(_tables())
        with ErrorsOf(self.book):
            await asyncio.gather(*(seat.open() for seat in self.seats))
            people = [asyncio.create_task(self._step(step), name=repr(step)) for step in self.program.steps]
            await self._until_the_end(TROUBLE_S)
            if self._is_over and self._is_too_quiet():
                people.append(asyncio.create_task(self._step(self.program.spare), name="the spare run"))
                self._runs += 1
                await self._until_the_end(TROUBLE_S)
            self.stage.faults.heal()
            await self._until_the_end(DRAIN_S)
            await self._end_of(people)
            await self._end_of(
                [
                    asyncio.create_task(self._ask_for_result(run), name=f"result {run}")
                    for run in self.ledgerbook.accepted
                ]
            )
            left = await self._drained()
            for seat in self.seats:
                await seat.close()
            for seat in self.seats:
                await seat.bury()
        self.loop.set_exception_handler(None)
        result = self._result(left)
        await self.store.close()
        return result

    def _unexpected(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        self.book.errors.append(f"{context.get('message')}: {context.get('exception')!r}")

    # What people do

    async def _step(self, step: Start | Cancel | Watch) -> None:
        await asyncio.sleep(step.pause_s)
        match step:
            case Start():
                await self._start(step)
            case Cancel():
                await self._cancel(step)
            case Watch():
                await self._watch(step)

    async def _ask(self, what: str, work: Callable[[Coordinator], Coroutine[Any, Any, T]]) -> T:
        """By whichever coordinator answers; asked again as a person does when one dies."""
        seat = self.stage.chance.choice(self.coordinators)
        while True:
            self.ledgerbook.operation()
            self.book.write(self.loop.time(), "ask", seat.name, what)
            try:
                return await seat.use(work)
            except (Died, BackendError, Closed) as error:
                self.book.write(self.loop.time(), "asked in vain", what, type(error).__name__)
            seat = self.coordinators[(self.coordinators.index(seat) + 1) % COORDINATORS]
            await asyncio.sleep(0.1)

    async def _start(self, step: Start) -> None:
        request = TaskRequest(name=step.run, id=step.run)
        plan = None if step.planned else {"subtasks": self.program.plans[step.run][0]}
        await self._ask(f"start {step.run}", lambda one: one.start(request, plan=plan, timeout_s=step.timeout_s))
        self.ledgerbook.accepted[step.run] = self.loop.time()
        self.ledgerbook.accepted_now(step.run).set()

    async def _cancel(self, step: Cancel) -> None:
        await self.ledgerbook.accepted_now(step.run).wait()
        result = await self._ask(f"cancel {step.run}", lambda one: one.cancel(step.run, "as planned"))
        self.ledgerbook.cancelled[step.run] = (self.loop.time(), result)

    async def _watch(self, step: Watch) -> None:
        """Goes on where it was with another coordinator, again and again, and does not wait for the end."""
        await self.ledgerbook.accepted_now(step.run).wait()
        seen = Seen(step.run)
        self.ledgerbook.seen.append(seen)

        async def some(one: Coordinator) -> bool:
            after = seen.entries[-1].number if seen.entries else 0
            async for entry in one.events(step.run, after=after):
                seen.entries.append(entry)
                await asyncio.sleep(0 if self._is_over else step.slowness_s)  # then nothing happens any more
                if len(seen.entries) % 7 == 0:
                    return False
            return True

        while not seen.is_whole:
            seen.is_whole = await self._ask(f"watch {step.run}", some)

    async def _ask_for_result(self, run: str) -> None:
        result = await self._ask(f"result {run}", lambda one: one.result(run))
        self.ledgerbook.results.setdefault(run, []).append(result)

    # The end

    async def _until_the_end(self, most_s: float) -> None:
        until = self.loop.time() + most_s
        self._is_over = False
        while self.loop.time() < until:
            if len(self.ledgerbook.accepted) == self._runs and not self.store.look(lambda: run_scripts.unfinished(1)):
                self._is_over = True
                return
            await asyncio.sleep(0.5)

    def _is_too_quiet(self) -> bool:
        """It would have to be drawn again."""
        return self.ledgerbook.operations < LEAST_OPERATIONS or len(self.stage.faults.struck) < FAULTS_TO_STRIKE

    async def _end_of(self, people: list[asyncio.Task[None]]) -> None:
        """Whoever is not answered is told of."""
        _, waiting = await asyncio.wait(people, timeout=DRAIN_S)
        for task in waiting:
            self.book.errors.append(f"nobody answered: {task.get_name()}")
            task.cancel()
        for outcome in await asyncio.gather(*people, return_exceptions=True):
            if isinstance(outcome, Exception):
                self.book.errors.append(f"somebody was answered {outcome!r}")

    async def _drained(self) -> dict[str, int]:
        until = self.loop.time() + DRAIN_S
        while True:
            left = self._left()
            if not left or self.loop.time() >= until:
                return left
            await asyncio.sleep(0.5)

    def _left(self) -> dict[str, int]:
        depths = {queue: self.stage.world.depth(queue) for queue in _QUEUES}
        left = {queue: depth.ready + depth.in_flight + depth.scheduled for queue, depth in depths.items()}
        for table in ("run_outbox", "run_timers", "run_inbox"):
            left[table] = self._rows(f"SELECT count(*) FROM {table}")[0][0]
        return {name: count for name, count in left.items() if count}

    def _rows(self, sql: str) -> list[Row]:
        def script() -> Script[list[Row]]:
            return list((yield Query(sql)))

        return self.store.look(script)

    def _state(self, run: str) -> RunState:
        return self.store.look(lambda: run_scripts.load(run))

    def _result(self, left: dict[str, int]) -> Result:
        runs = self.ledgerbook.accepted
        states = {run: self._state(run) for run in runs}
        return Result(
            program=self.program,
            book=self.book,
            ledgerbook=self.ledgerbook,
            world=self.stage.world,
            struck=self.stage.faults.struck,
            states=states,
            logs={run: self.store.look(lambda run=run: run_log.read(run, 0, 10_000)) for run in runs},  # type: ignore[misc]
            histories={run: {name: self._history(run, name) for name in states[run].rows} for run in runs},
            left=left,
            steps=self.loop.steps,
        )

    def _history(self, run: str, name: str) -> list[HistoryEntry]:
        return self.store.look(lambda: history(run_scripts.task_id(run, name), 0, 1_000))


@lru_cache(maxsize=1)
def _tables() -> bytes:
    """A ledger without rows: made once, for the migrations take longer than all the rest. Without the indexes that
    are there for speed alone: a few dozen rows have none."""

    async def make() -> bytes:
        store = MemoryStore()
        async with StoredLedger(store, migrate=True):
            store.run(_without_indexes)
            return store.image()

    return asyncio.run(make())


def _without_indexes() -> Script[None]:
    for (name,) in (yield Query("SELECT name FROM sqlite_schema WHERE type = 'index' AND sql IS NOT NULL")):
        yield Query(f"DROP INDEX {name}")


def run_program(program: Program) -> Result:
    """Run it on a virtual loop: a pure function of the program."""
    _tables()
    with seeded_ids(program.seed):
        return run_virtual(_run(program), loop=VirtualLoop(_MOST_STEPS))


async def _run(program: Program) -> Result:
    return await Simulation(program).run()
