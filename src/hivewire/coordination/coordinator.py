"""The coordinator: takes tasks, has them planned and carried out, and survives the death of any process."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Self

import msgspec

from hivewire.coordination.ledger import Ledger
from hivewire.coordination.tasks import OUTCOMES, TaskRequest, TaskResult, check_kept, check_request, result_of
from hivewire.errors import BackendError, Closed, CoordinationError, Deadline, NoCapableWorker
from hivewire.ids import new_id
from hivewire.rules.plan_limits import RunLimits

# The rest is loaded when one is made: all names of the package are loaded by some programs that never make one.
if TYPE_CHECKING:
    from hivewire.coordination.ledger.run_log import LogEntry
    from hivewire.coordination.looking import CoordinatorHealth, CoordinatorStats, RunLedgers
    from hivewire.coordination.planner import Planner
    from hivewire.coordination.team import Member
    from hivewire.coordination.watcher import Watcher
    from hivewire.coordination.worker import Context, Worker
    from hivewire.llm.contract import LLM
    from hivewire.message import Message
    from hivewire.protocol import Protocol, ProtocolMetrics, Receipt
    from hivewire.rules.plan import Plan
    from hivewire.rules.plan_limits import Capability
    from hivewire.rules.plan_state import RunState

log = logging.getLogger(__name__)

_PAUSE_S: Final = 0.5


class Coordinator:
    """Any number of them may share one protocol and one ledger: each takes whatever result comes, and the row of the
    run in the ledger says who was first. There is no leader.

    `team`: workers, or `(name, capabilities)`, that are there in any case; others are known by their heartbeats
    (`hivewire worker` and `hivewire.run` send them), unless `discover` is off. Without a `team` no plan is made or
    taken in the first 2.5 s after opening, by when everybody was heard of. `limits`: how far each run may go, by
    new plans and otherwise. `watcher` is told what this object sees and does. Without a ledger everything is kept in
    memory.
    """

    def __init__(
        self,
        llm: LLM | None,
        protocol: Protocol,
        *,
        ledger: Ledger | None = None,
        team: Iterable[Any] = (),
        capabilities: Iterable[Capability] = (),
        planner: Planner | None = None,
        limits: RunLimits | None = None,
        name: str = "coordinator",
        discover: bool = True,
        watcher: Watcher | None = None,
        lease_s: float = 10.0,
        clock: Callable[[], float] = time.time,
    ) -> None:
        from hivewire.coordination.asked import check_parts, members_of
        from hivewire.coordination.errands import Errands
        from hivewire.coordination.ledger.runs import Runs
        from hivewire.coordination.ledger.sqlite import MemoryStore
        from hivewire.coordination.ledger.stored import StoredLedger
        from hivewire.coordination.planner import Planner, by_name
        from hivewire.coordination.team import Team
        from hivewire.coordination.watcher import Watcher

        self._limits = RunLimits() if limits is None else limits
        check_parts(llm, protocol, self._limits, name, lease_s)
        self.ledger = ledger if ledger is not None else StoredLedger(MemoryStore(clock=clock), migrate=True)
        self.protocol = protocol
        self.name = name
        self._owns_ledger = ledger is None
        self._discovers = discover
        self._watcher = watcher or Watcher()
        self._clock = clock
        self._described = by_name(capabilities)
        self._planner = planner or (Planner(llm) if llm is not None else None)
        self.team = Team(members_of(team), clock=clock)
        self.runs = Runs(self.ledger)
        self._errands = Errands(
            protocol, self.runs, self.ledger, self.team, name=name, planner=self._planner, described=self._known,
            watcher=self._watcher, discover=discover, met=self._met, lease_s=lease_s, clock=clock,
        )  # fmt: skip
        self._tasks: list[asyncio.Task[None]] = []
        self._serving: list[asyncio.Task[None]] = []
        self._trouble: dict[Callable[[], Awaitable[None]], Exception] = {}
        self._ended_by: BaseException | None = None
        self._is_open = False
        self._meeting_until = 0.0
        self._opening = asyncio.Lock()

    # -- from opening to closing

    async def __aenter__(self) -> Self:
        await self.open()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def open(self) -> None:
        """Begin to work on the runs of the ledger, those of others included. Idempotent."""
        from hivewire.coordination.team import GROUP, MEETING_S

        async with self._opening:
            if self._is_open:
                return
            try:
                await self.ledger.open()
                await self.protocol.subscribe(self.name, groups=[GROUP] if self._discovers else [], mode="competing")
            except BaseException:
                if self._owns_ledger:
                    await self.ledger.close()
                raise
            self._is_open = True
            self._meeting_until = asyncio.get_running_loop().time() + MEETING_S
            for loop in (self._errands.listen, self._errands.look_around):
                self._tasks.append(asyncio.create_task(self._repeat(loop), name=f"hivewire-{self.name}"))

    async def close(self) -> None:
        """Stop working; runs go on with other coordinators, or when one is opened again. Idempotent."""
        self._is_open = False
        tasks, self._tasks, self._serving = [*self._tasks, *self._serving], [], []
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
        await self._errands.close()
        if self._owns_ledger:
            await self.ledger.close()

    async def _repeat(self, once: Callable[[], Awaitable[None]]) -> None:
        """Until the protocol or the ledger is closed; a store that is away for a while is waited for, and nothing that
        goes wrong ends it: messages that this process holds would be stuck."""
        while True:
            try:
                await once()
                self._trouble.pop(once, None)
            except asyncio.CancelledError:
                raise
            except (BackendError, Closed) as error:
                if isinstance(error, Closed) and isinstance(self._trouble.get(once), Closed):  # it does not come back
                    log.error("the coordinator has ended", extra={"error": str(error)})
                    self._ended_by = error
                    self._errands.moves.tell_all()
                    return
                self._trouble[once] = error
                log.warning("the coordinator waits for a store", extra={"error": str(error)})
                await asyncio.sleep(_PAUSE_S)
            except Exception as error:
                self._trouble[once] = error
                log.exception("the coordinator goes on after an error")
                await asyncio.sleep(_PAUSE_S)
            except BaseException as error:
                self._ended_by = error
                self._errands.moves.tell_all()
                raise

    # -- tasks

    async def execute(
        self, request: TaskRequest, *, plan: Plan | Mapping[str, Any] | None = None, timeout_s: float | None = None
    ) -> TaskResult:
        """Have a task done. Without a `plan` the model makes one.

        The run goes on though this call is cancelled; the same request (its id) waits for the same run. After
        `timeout_s` the run is ended, as failed. Raises `InvalidPlan` and `NoCapableWorker` for a plan that cannot be
        begun; everything later is in the result.
        """
        run = await self.start(request, plan=plan, timeout_s=timeout_s)
        return await self.result(run)

    async def start(
        self, request: TaskRequest, *, plan: Plan | Mapping[str, Any] | None = None, timeout_s: float | None = None
    ) -> str:
        """Accept a task: when this returns, its run is stored and will be carried out. Returns the run's id."""
        from hivewire.rules.plan import Plan
        from hivewire.rules.plan_state import new_run

        self._check_open()
        check_request(request, timeout_s)
        if plan is None and self._planner is None:
            raise CoordinationError("there is no model to make a plan: give a plan, or make the Coordinator with one")
        if plan is not None:
            await self._met()
        checked = Plan(name=request.name) if plan is None else await self._checked(plan, request)
        state = new_run(
            request.id,
            msgspec.structs.replace(checked, name=request.name),
            self._known(),
            request.input,
            description=request.description,
            plans_left=self._limits.replans + (plan is None) if self._planner is not None else 0,
            timeout_s=self._limits.wall_s if timeout_s is None else timeout_s,
            limits=self._limits,
        )
        await self.begin(state)
        return request.id

    async def begin(self, state: RunState) -> None:
        """Accept a run as it was made by `new_run`, or go on with it at once when it has been accepted before."""
        from hivewire.rules.plan_state import Incoming, Started

        self._check_open()
        run = state.header.run
        made = await self.runs.create(state, Incoming("start", Started(at=self._clock())))
        self._watcher.stepped(made if made is not None else await self.runs.load(run))
        await self._errands.relay_soon(run)

    @property
    def trouble(self) -> Exception | None:
        """What keeps this object from its work at this moment."""
        return next(iter(self._trouble.values()), None)

    async def _checked(self, plan: Plan | Mapping[str, Any], request: TaskRequest) -> Plan:
        from hivewire.coordination.planner import checked_plan, plain
        from hivewire.rules.plan import Plan

        raw = plain(plan) if isinstance(plan, Plan) else _as_dict(plan)
        check_kept(raw, "the plan")
        known = self._known()
        if not known:
            raise NoCapableWorker(f'"{request.name}" cannot be begun: no worker is known; start some, or name a team')
        return checked_plan(raw, known.values(), request.input, self._limits.of_plan)

    async def _met(self) -> None:
        """Who is known by heartbeats alone is known after one beat: a plan that is made sooner would be for nobody."""
        if self._discovers and not self.team.is_named:
            await asyncio.sleep(max(0.0, self._meeting_until - asyncio.get_running_loop().time()))

    def _known(self) -> dict[str, Capability]:
        """The capabilities of those who are there, as they were described."""
        from hivewire.rules.plan_limits import Capability

        return {
            name: self._described.get(name, Capability(name=name)) for name in sorted(self.team.roster.capabilities)
        }

    async def result(self, run: str, *, timeout_s: float | None = None) -> TaskResult:
        """Wait for the end of a run, whoever carries it out. Raises `Deadline` after `timeout_s`; the run goes on."""
        try:
            async with asyncio.timeout(timeout_s):
                return result_of(await self._ended(run))
        except TimeoutError:
            raise Deadline(f"run {run} did not end within {timeout_s} s; it goes on") from None

    async def _ended(self, run: str) -> RunState:
        with self._errands.moves.of(run) as follower:
            while not (state := await self.runs.load(run)).is_finished:
                self._check_open()
                await follower.news()
        return state

    async def state(self, run: str) -> RunState:
        """The run as it is stored now, with every subtask. Raises `CoordinationError` when there is none."""
        return await self.runs.load(run)

    async def ledgers(self, run: str) -> RunLedgers:
        """What the run knows, supposes, plans, and how it gets on. Raises `CoordinationError` when there is none."""
        from hivewire.coordination.looking import ledgers_of

        return ledgers_of(await self.runs.load(run))

    async def cancel(self, run: str, reason: str = "cancelled") -> TaskResult:
        """End a run: when this returns, nothing of it begins any more, anywhere. Async handlers that run are cancelled
        within a second, handlers in processes end with their process; what a thread still answers is ignored.

        While the protocol's store is away this waits for it; the run is ended all the same.
        """
        from hivewire.rules.plan_state import Cancel, Incoming
        from hivewire.rules.stops import PERMIT_S

        cause = Incoming(f"cancel:{new_id()}", Cancel(at=self._clock(), reason=reason))
        state, _, _ = await self.runs.apply(run, lambda _: [cause])
        self._watcher.stepped(state)
        self._errands.moves.tell(run)
        if state.header.status == "cancelled":
            await self._errands.relay(run)
            await asyncio.sleep(PERMIT_S)  # who has asked before may begin for so long
        return result_of(state)

    async def events(self, run: str, *, after: int = 0) -> AsyncIterator[LogEntry]:
        """What happens in a run, from the entry after that number, without gaps, up to the run's end.

        From any coordinator on the ledger; one that reads slowly holds nothing in memory.
        """
        is_over = False
        while True:
            with self._errands.moves.of(run) as follower:
                page = await self.runs.log(run, after)
                if not page and not is_over:
                    is_over = (await self.runs.load(run)).is_finished  # raises when there is none
                    if not is_over:  # else the end may have been told since the page was read
                        self._check_open()
                        await follower.news()
                    continue
            if not page:
                return  # whoever asks for what comes after the end
            for entry in page:
                yield entry
                after = entry.number
                if entry.body.get("type") == "run" and entry.body.get("status") in OUTCOMES:
                    return

    # -- looking at it

    async def health(self) -> CoordinatorHealth:
        """By component: protocol, ledger, workers, model, and this object's own loops."""
        from hivewire.coordination.looking import look_at_health

        troubles: list[object] = list(self._trouble.values())
        if not self._is_open:
            troubles.append("the coordinator is not open")
        if self._ended_by is not None:
            troubles.append(f"the coordinator has ended: {self._ended_by!r}")
        return await look_at_health(
            self.protocol,
            self.ledger,
            workers=bool(self.team.members()),
            troubles=troubles,
            model_trouble=self._errands.model_trouble,
            at=self._clock(),
        )

    async def stats(self) -> CoordinatorStats:
        """Workers and tasks, counted now."""
        from hivewire.coordination.looking import count

        return await count(self.protocol, self.ledger, self.runs, self.team.members(), self._clock())

    def metrics(self) -> ProtocolMetrics:
        """What this process's protocol has sent, received, failed."""
        return self.protocol.metrics()

    # -- who does the work

    def workers(self) -> list[Member]:
        """Those who are there now."""
        return self.team.members()

    def register_worker(self, name: str, capabilities: Iterable[str], *, role: str = "worker") -> None:
        """Count an agent as there in any case, as those of `team`, until `unregister_worker`. For agents that send no
        heartbeats: each coordinator must be told."""
        self.team.keep(name, capabilities, role)

    def unregister_worker(self, name: str) -> bool:
        """Send nothing more to an agent that was registered here; what it has, it may finish. Whether there was one.
        One that sends heartbeats leaves when it stops sending them."""
        return self.team.drop(name)

    async def create_worker(
        self, name: str, handler: Callable[[Message, Context], Any], *, capabilities: Iterable[str] = (), **how: Any
    ) -> Worker:
        """A worker for tasks in this process, which serves until the coordinator is closed. Without `capabilities` its
        name is the one that it has. `how`: as for `Worker` (`role`, `concurrency` …)."""
        from hivewire.coordination.worker import Worker

        self._check_open()
        worker = Worker(name, capabilities=tuple(capabilities) or (name,), **{"mode": "competing", **how})
        worker.on("task")(handler)
        await self.protocol.subscribe(name, worker.types, mode=worker.mode)  # told to the caller, where it cannot be
        self._check_open()  # it may have been closed meanwhile
        self._serving.append(asyncio.create_task(self._serve(worker), name=f"hivewire-worker-{name}"))
        self.register_worker(name, worker.capabilities, role=worker.role)
        return worker

    async def _serve(self, worker: Worker) -> None:
        async def serve() -> None:
            await worker.serve(self.protocol)

        await self._repeat(serve)

    async def register_group(self, group: str, agents: Iterable[str]) -> None:
        """Let agents be members of a group, beside those that are; it outlives this process."""
        for agent in agents:
            await self.protocol.subscribe(agent, groups=[group])

    async def broadcast(self, content: Any, group: str, *, type: str = "inform", durable: bool = True) -> Receipt:
        """Tell all members of a group something."""
        from hivewire.message import Message

        message = Message(type=type, sender=self.name, to=group, content=content)
        return await self.protocol.broadcast(message, group, durable=durable)

    def _check_open(self) -> None:
        if self._ended_by is not None:
            raise CoordinationError(f"the coordinator has ended: {self._ended_by!r}") from self._ended_by
        if not self._is_open:
            raise Closed("use the coordinator: it is not open; `async with Coordinator(…)` opens it")


def _as_dict(plan: object) -> Any:
    return dict(plan) if isinstance(plan, Mapping) else plan
