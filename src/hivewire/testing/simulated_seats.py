"""The processes of a simulation: coordinators and workers, each with its own line to the protocol's store and to the
ledger."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterable
from functools import partial
from typing import Any, Final, TypeVar

import msgspec

from hivewire.coordination.coordinator import Coordinator
from hivewire.coordination.ledger.sqlite import MemoryStore
from hivewire.coordination.ledger.store import Script, Store
from hivewire.coordination.ledger.stored import StoredLedger
from hivewire.coordination.planner import Planner
from hivewire.coordination.tasks import TaskRequest, Trouble
from hivewire.coordination.worker import Context, Worker
from hivewire.engine.protocol import Engine
from hivewire.errors import BackendError, Closed, ConnectionLost, HivewireError, Reject
from hivewire.message import Message
from hivewire.rules.plan import Plan
from hivewire.rules.plan_limits import Capability
from hivewire.rules.retry import Retry
from hivewire.testing.profiles_faults import ProcessIsDead, Wire
from hivewire.testing.scripted_model import ScriptedModel
from hivewire.testing.seeded_process import Died, SimulatedProcess, Stage
from hivewire.testing.simulated_book import Asked, Handled, Ledgerbook
from hivewire.testing.simulated_program import HANG_S, LEASE_S, TEAM, Program

T = TypeVar("T")

_AGAIN_S: Final = 0.2
_RETRY: Final = Retry(max_attempts=40, first_s=0.1, most_s=0.4)
_SETTINGS: Final[dict[str, Any]] = {
    "lease_s": LEASE_S,
    "max_attempts": 40,
    "retry_first_s": 0.1,
    "retry_most_s": 0.4,
    "shards": 2,
}


class WiredStore(Store):
    """A ledger's tables at the far end of a line: a request or its answer can be lost, late, or the last of its
    process. What was lost is tried again, as by a store on a server, though it may have been committed."""

    kind = "memory"
    dialect = "sqlite"
    durability = "process"

    def __init__(self, shared: MemoryStore, wire: Wire, begun: Callable[[], None]) -> None:
        self._shared = shared
        self._wire = wire
        self._begun = begun

    async def open(self) -> None:
        """It is there before anybody comes."""

    async def close(self) -> None:
        """It stays when somebody goes."""

    async def read(self, make: Callable[[], Script[T]]) -> T:
        while True:
            try:
                return await self._wire.call((), partial(self._shared.look, make))
            except ProcessIsDead:
                raise
            except ConnectionLost:
                await asyncio.sleep(_AGAIN_S)

    async def write(self, make: Callable[[], Script[T]], *, single: bool = False) -> T:
        self._begun()
        while True:
            try:
                return await self._wire.call(("write",), partial(self._shared.run, make), weight=1)
            except ProcessIsDead:
                raise
            except ConnectionLost:
                await asyncio.sleep(_AGAIN_S)

    async def storage_size_bytes(self) -> int:
        return await self._shared.storage_size_bytes()


class SimulatedPlanner(Planner):
    """Gives the program's plans, after a while."""

    def __init__(self, seat: CoordinatorSeat) -> None:
        super().__init__(ScriptedModel(()))
        self._seat = seat

    async def plan(
        self, request: TaskRequest, capabilities: Iterable[Capability | str], trouble: Trouble | None = None
    ) -> Plan:
        version = 0 if trouble is None else 1 + max(ord(error[1]) - ord("a") for error in trouble.errors)
        plans = self._seat.program.plans[request.id]
        asked = Asked(request.id, version, self._seat.name, self._seat.stage.loop.time())
        self._seat.ledgerbook.asked.append(asked)
        await self._seat.at_work("early")
        await asyncio.sleep(0.3)
        await self._seat.at_work("late")
        finished = sorted(trouble.finished) if trouble is not None else []
        subtasks = [dict(each) for each in plans[min(version, len(plans) - 1)]]
        if finished:
            first = next(each for each in subtasks if not each["dependencies"])
            first["dependencies"] = finished[:1]
        asked.answered_at = self._seat.stage.loop.time()
        return msgspec.convert({"subtasks": subtasks}, Plan)  # the finished ones are no part of it: checked by the step


class _SeatWithLedger(SimulatedProcess):
    def __init__(self, slot: int, stage: Stage, program: Program, ledger: MemoryStore, book: Ledgerbook) -> None:
        super().__init__(slot, stage, **_SETTINGS)
        self.program = program
        self.ledgerbook = book
        self._ledger = ledger

    def _line(self) -> tuple[Engine, Wire]:
        assert self._engine is not None
        assert self._wire is not None
        return self._engine, self._wire

    async def at_work(self, moment: Any) -> None:
        """Something begins or ends that takes a while."""
        self.ledgerbook.operation()
        await self._line()[1].at_handler(moment)

    async def close(self) -> None:
        """The end, in peace."""
        raise NotImplementedError

    def _spawn(self, work: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None]:
        return self.stage.loop.create_task(work, context=self._context.copy(), name=name)

    def _wrong(self, wire: Wire, doing: str, error: BaseException) -> None:
        if not wire.is_cut:
            self.stage.book.errors.append(f"{wire.name} {doing}: {error!r}")


class CoordinatorSeat(_SeatWithLedger):
    """A process with a coordinator."""

    def _sit_down(self) -> None:
        engine, wire = self._line()
        ledger = StoredLedger(WiredStore(self._ledger, wire, self.ledgerbook.operation))
        self.ready: asyncio.Future[Coordinator] = self.stage.loop.create_future()
        coordinator = Coordinator(
            None,
            engine,
            ledger=ledger,
            team=list(TEAM.items()),
            planner=SimulatedPlanner(self),
            lease_s=LEASE_S,
            clock=self.stage.loop.wall_time,
        )
        self._opening = self._spawn(self._open(coordinator, wire), f"open {self.name}")

    async def _open(self, coordinator: Coordinator, wire: Wire) -> None:
        ready = self.ready
        while not ready.done():
            try:
                await coordinator.open()
                ready.set_result(coordinator)
            except ProcessIsDead:
                return
            except BackendError:
                await asyncio.sleep(_AGAIN_S)

    async def use(self, work: Callable[[Coordinator], Coroutine[Any, Any, T]]) -> T:
        """Let somebody in the process that sits here use its coordinator. Raises `Died` if it is killed meanwhile."""

        async def within(_: Any) -> T:
            return await work(await asyncio.shield(self.ready))

        return await self.do(within)

    async def close(self) -> None:
        async def end(coordinator: Coordinator) -> None:
            await coordinator.close()
            await coordinator.protocol.close(3.0)

        await self.use(end)


class WorkerSeat(_SeatWithLedger):
    """A process with a worker of each kind."""

    def _sit_down(self) -> None:
        engine, wire = self._line()
        self._stop = asyncio.Event()
        self._serving = [
            self._spawn(self._serve(self._worker(name, capabilities), engine, wire, self._stop), f"serve {name}")
            for name, capabilities in TEAM.items()
        ]

    def _worker(self, name: str, capabilities: tuple[str, ...]) -> Worker:
        worker = Worker(
            name, capabilities=capabilities, concurrency=4, mode="competing" if name == "ant" else "ordered"
        )
        worker.on("task", retry=_RETRY)(self._handle)
        return worker

    async def _serve(self, worker: Worker, engine: Engine, wire: Wire, stop: asyncio.Event) -> None:
        while not stop.is_set():
            stopper = asyncio.create_task(stop.wait())
            try:
                await worker.serve(engine, stop=stopper, drain_s=1.0)
            except (Closed, ProcessIsDead):
                return
            except BackendError:
                await asyncio.sleep(_AGAIN_S)
            except HivewireError as error:
                self._wrong(wire, f"serve {worker.name}", error)
                return
            finally:
                stopper.cancel()

    async def _handle(self, task: Message, ctx: Context) -> Any:
        """What the program says of this subtask."""
        run, name, attempt = task.content["run"], task.content["subtask"], task.content["attempt"]
        handled = Handled(
            run=run, subtask=name, attempt=attempt, id=task.id, agent=task.to, process=self.name,
            began_at=self.stage.loop.time(), saw={other: out["mark"] for other, out in task.content["outputs"].items()},
        )  # fmt: skip
        is_first = not any(each.id == task.id for each in self.ledgerbook.handled)
        self.ledgerbook.handled.append(handled)
        self.stage.book.write(handled.began_at, "start", self.name, task.to, run, name, attempt)
        await self.at_work("early")
        deed = self.program.deeds[run].get(name, "ok")
        await asyncio.sleep({"slow": 0.4 * self.stage.chance.random(), "hang": HANG_S}.get(deed, 0.001))
        await self.at_work("late")
        if deed == "reject":
            raise Reject("as planned")
        if deed == "raise" and is_first:
            raise ValueError("as planned")
        output = {"mark": f"{run}/{name}/{attempt}", "attempt": attempt, "saw": handled.saw}
        handled.ended_at = self.stage.loop.time()
        if deed == "grow":
            output["subtasks"] = [{"name": f"{name}-{n}", "assigned_to": "dig"} for n in range(2)]
        if deed == "back":
            target = min(task.content["outputs"])
            if task.content["outputs"][target]["attempt"] < 2:
                return {"send_back": {"subtask": target, "feedback": "once more"}}
        return output

    async def close(self) -> None:
        async def end(engine: Any) -> None:
            self._stop.set()
            await asyncio.wait(self._serving)
            await engine.close(3.0)

        try:
            await self.do(end)
        except Died:
            return
