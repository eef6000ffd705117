"""Tasks are planned, carried out and told of truly, on virtual time."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any
from uuid import uuid4

import pytest

import hivewire as hw
from hivewire.coordination.coordinator import Coordinator
from hivewire.coordination.ledger import Ledger, TaskFilter, TaskStatus
from hivewire.coordination.ledger.run_scripts import LogEntry
from hivewire.coordination.ledger.runs import Runs
from hivewire.coordination.ledger.sqlite import MemoryStore
from hivewire.coordination.ledger.store import Script
from hivewire.coordination.ledger.stored import StoredLedger
from hivewire.coordination.planner import Planner
from hivewire.coordination.tasks import TaskRequest, TaskResult, Trouble
from hivewire.coordination.team import announced
from hivewire.errors import (
    Closed,
    ConnectionLost,
    CoordinationError,
    Deadline,
    InvalidPlan,
    NoCapableWorker,
    PlanRefused,
)
from hivewire.llm.contract import CompletionRequest, CompletionResponse
from hivewire.rules.plan import parse_plan
from hivewire.rules.plan_limits import Capability, PlanLimits
from hivewire.rules.plan_state import Cancel, Incoming, Started, new_run
from hivewire.testing.conformance.waiting import until, until_true
from hivewire.testing.scripted_model import Answer, ScriptedModel
from hivewire.testing.virtual_loop import EPOCH
from hivewire.testing.virtual_time import virtual

Handler = Callable[[hw.Message, hw.Context], Any]


def sub(name: str, *after: str, assigned_to: str = "work", **fields: Any) -> dict[str, Any]:
    return {"name": name, "assigned_to": assigned_to, "dependencies": list(after), **fields}


def plan(*subtasks: dict[str, Any]) -> dict[str, Any]:
    return {"subtasks": list(subtasks)}


def now() -> float:
    return EPOCH + asyncio.get_running_loop().time()


def elapsed(since: float) -> float:
    return now() - since


class Stage:
    """A protocol, a ledger and workers; coordinators are added, and die, as a test likes."""

    def __init__(self, stack: AsyncExitStack, protocol: hw.Protocol, store: MemoryStore) -> None:
        self._stack = stack
        self.protocol = protocol
        self.store = store
        self.ledger: Ledger = StoredLedger(store, migrate=True)
        self.calls: list[str] = []
        self.inputs: dict[str, dict[str, Any]] = {}
        self.workers: list[hw.Worker] = []

    def worker(self, name: str, *capabilities: str, handler: Handler | None = None, concurrency: int = 16) -> hw.Worker:
        made = hw.Worker(name, capabilities=capabilities, concurrency=concurrency, mode="competing")

        async def handle(task: hw.Message, ctx: hw.Context) -> Any:
            self.calls.append(task.content["subtask"])
            self.inputs[task.content["subtask"]] = task.content
            return await handler(task, ctx) if handler is not None else {"from": task.content["subtask"]}

        made.on("task", retry=hw.Retry(max_attempts=2, first_s=0.1))(handle)
        self.workers.append(made)
        serving = asyncio.create_task(made.serve(self.protocol))

        async def end() -> None:
            serving.cancel()
            await asyncio.wait([serving])

        self._stack.push_async_callback(end)
        return made

    async def coordinator(self, *answers: Answer, **how: Any) -> Coordinator:
        model = ScriptedModel(list(answers)) if answers else None
        how.setdefault("team", self.workers)
        how.setdefault("ledger", self.ledger)
        made = Coordinator(model, self.protocol, clock=now, **how)
        return await self._stack.enter_async_context(made)


@asynccontextmanager
async def stage() -> AsyncIterator[Stage]:
    async with AsyncExitStack() as stack:
        protocol = await stack.enter_async_context(hw.connect(f"memory://{uuid4().hex}", lease_s=2, retry_first_s=0.05))
        made = Stage(stack, protocol, MemoryStore(clock=now))
        await stack.enter_async_context(made.ledger)
        yield made


async def slow(task: hw.Message, ctx: hw.Context) -> Any:
    await asyncio.sleep(0.1)
    return {"n": 1}


@virtual
async def test_a_diamond_of_ten_overlaps() -> None:
    """Ten subtasks of 100 ms in three ranks: 300 ms and little more."""
    async with stage() as on:
        on.worker("w", "work", handler=slow)
        coordinator = await on.coordinator()
        middle = [f"m{n}" for n in range(8)]
        diamond = plan(sub("first"), *(sub(name, "first") for name in middle), sub("last", *middle))
        began = now()
        result = await coordinator.execute(TaskRequest(name="diamond"), plan=diamond)
        assert result.status == "completed"
        assert elapsed(began) <= 0.35


@virtual
async def test_a_chain_of_three_is_three_calls_with_outputs_by_name() -> None:
    """Defects 13, 19: each subtask ran twice, and saw nothing of the others."""
    async with stage() as on:
        on.worker("w", "work")
        coordinator = await on.coordinator()
        chain = plan(sub("c", "b"), sub("b", "a", input={"own": 1}), sub("a"))
        result = await coordinator.execute(TaskRequest(name="chain", input={"run": 2}), plan=chain)
        assert on.calls == ["a", "b", "c"]
        assert on.inputs["b"]["input"] == {"run": 2, "own": 1}
        assert on.inputs["c"]["outputs"] == {"b": {"from": "b"}}
        assert result == TaskResult(
            task_id=result.task_id,
            status="completed",
            output={name: {"from": name} for name in "abc"},
            subtasks=dict.fromkeys("cba", "done"),
            completed_at=result.completed_at,
        )


@virtual
async def test_the_ledger_tells_the_truth() -> None:
    """Defect 14: the task itself was never completed."""
    async with stage() as on:
        on.worker("w", "work")
        coordinator = await on.coordinator()
        result = await coordinator.execute(TaskRequest(name="t"), plan=plan(sub("a"), sub("b", "a")))
        task = await on.ledger.get_task(result.task_id)
        assert (task.name, task.status, task.output) == ("t", TaskStatus.COMPLETED, result.output)
        parts = await on.ledger.list_tasks(TaskFilter(parent_id=result.task_id))
        assert sorted((part.name, str(part.status)) for part in parts) == [("a", "completed"), ("b", "completed")]
        assert [entry.status for entry in await on.ledger.history(parts[0].id)][-1] == "completed"
        stats = await coordinator.stats()
        assert (stats.tasks["completed"], stats.tasks["total"], stats.unfinished_runs) == (3, 3, 0)


@virtual
async def test_work_goes_to_those_who_can() -> None:
    """Defect 15: the capability was ignored."""
    async with stage() as on:
        done: dict[str, list[str]] = {"reader": [], "writer": []}

        def noting(name: str) -> Handler:
            async def handle(task: hw.Message, ctx: hw.Context) -> Any:
                done[name].append(task.content["subtask"])

            return handle

        on.worker("reader", "read", handler=noting("reader"))
        on.worker("writer", "write", handler=noting("writer"))
        coordinator = await on.coordinator()
        parts = [sub(f"{kind}{n}", assigned_to=kind) for n in range(20) for kind in ("read", "write")]
        assert (await coordinator.execute(TaskRequest(name="t"), plan=plan(*parts))).status == "completed"
        assert sorted(done["reader"]) == sorted(f"read{n}" for n in range(20))
        assert sorted(done["writer"]) == sorted(f"write{n}" for n in range(20))


@virtual
async def test_results_of_many_runs_do_not_mix() -> None:
    """Defect 9: results of other tasks were dropped."""
    async with stage() as on:

        async def answer(task: hw.Message, ctx: hw.Context) -> Any:
            await asyncio.sleep(0.3 - task.content["input"]["n"] * 0.01)  # the last one first
            return {"n": task.content["input"]["n"], "subtask": task.content["subtask"]}

        on.worker("w", "work", handler=answer, concurrency=100)
        coordinator = await on.coordinator()
        parts = plan(*(sub(f"s{n}") for n in range(4)), sub("end", "s0", "s1", "s2", "s3"))
        results = await asyncio.gather(
            *(coordinator.execute(TaskRequest(name=f"t{n}", input={"n": n}), plan=parts) for n in range(20))
        )
        for n, result in enumerate(results):
            assert result.output == {name: {"n": n, "subtask": name} for name in (*(f"s{k}" for k in range(4)), "end")}


def failing(*names: str) -> Handler:
    async def handle(task: hw.Message, ctx: hw.Context) -> Any:
        if task.content["subtask"] in names:
            raise hw.Reject("no ink")
        return {"from": task.content["subtask"]}

    return handle


class CountingStore(MemoryStore):
    """Counts how often it is read."""

    reads = 0

    async def read(self, make: Callable[[], Script[Any]]) -> Any:
        self.reads += 1
        return await super().read(make)


@virtual
async def test_many_runs_at_once_cost_no_more_each_than_a_few() -> None:
    """Who waits for a run is not woken by the steps of all the others."""

    async def reads_of_each(runs: int) -> float:
        async with stage() as on:
            store = CountingStore(clock=now)
            on.worker("w", "work")
            coordinator = await on.coordinator(ledger=StoredLedger(store, migrate=True))
            chain = plan(*(sub(f"s{n}", *([f"s{n - 1}"] if n else [])) for n in range(5)))
            results = await asyncio.gather(
                *(coordinator.execute(TaskRequest(name="t"), plan=chain) for _ in range(runs))
            )
            assert [result.status for result in results] == ["completed"] * runs
            return store.reads / runs

    assert await reads_of_each(100) <= 1.5 * await reads_of_each(5)


@virtual
async def test_a_failed_dependency_has_a_defined_outcome_and_the_rest_comes_back() -> None:
    async with stage() as on:
        on.worker("w", "work", handler=failing("bad"))
        coordinator = await on.coordinator()
        parts = plan(sub("good"), sub("bad"), sub("after", "bad"), sub("later", "after"), sub("beside", "good"))
        result = await coordinator.execute(TaskRequest(name="t"), plan=parts)
        assert result.status == "failed"
        assert result.output == {"good": {"from": "good"}, "beside": {"from": "beside"}}
        assert result.subtasks == {
            "good": "done", "bad": "failed", "after": "skipped", "later": "skipped", "beside": "done"
        }  # fmt: skip
        assert '"bad" failed: rejected' in result.error
        assert "no ink" in result.error


@virtual
async def test_a_model_plans_and_plans_again_with_what_is_finished() -> None:
    """Defect 17. Finished work is not done again."""
    async with stage() as on:
        on.worker("w", "work", handler=failing("bad"))
        model = ScriptedModel([plan(sub("a"), sub("bad", "a")), plan(sub("c", "a"))])
        coordinator = await on.coordinator(planner=Planner(model))
        result = await coordinator.execute(TaskRequest(name="t", description="of bees"))
        assert (result.status, sorted(result.output)) == ("completed", ["a", "c"])
        assert on.calls.count("a") == 1
        assert on.inputs["c"]["outputs"] == {"a": {"from": "a"}}
        first, second = (request.user for request in model.requests)
        assert "of bees" in first
        assert "of bees" in second
        assert '"bad" (work) failed: rejected after 1 attempt: no ink' in second
        assert '- a: {"from":"a"}' in second


@virtual
async def test_the_ledger_tells_of_a_subtask_what_its_latest_plan_says() -> None:
    async with stage() as on:
        on.worker("w", "work", handler=failing("a"))
        on.worker("other", "else")
        anew = plan(sub("a", assigned_to="else", description="new", priority=7, input={"n": 2}))
        coordinator = await on.coordinator(plan(sub("a", description="old", input={"n": 1})), anew)
        result = await coordinator.execute(TaskRequest(name="t"))
        assert result.status == "completed"
        [task] = await on.ledger.list_tasks(TaskFilter(parent_id=result.task_id))
        assert (task.description, task.assigned_to, task.priority, task.input) == ("new", "else", 7, {"n": 2})


@virtual
async def test_there_is_an_end_to_planning() -> None:
    async with stage() as on:
        on.worker("w", "work", handler=failing("bad"))
        model = ScriptedModel([plan(sub("bad"))] * 5)
        coordinator = await on.coordinator(planner=Planner(model), limits=hw.RunLimits(replans=2))
        result = await coordinator.execute(TaskRequest(name="t"))
        assert result.status == "failed"
        assert len(model.requests) == 3


@virtual
async def test_a_model_that_makes_a_plan_is_stopped_when_nobody_wants_it_any_more() -> None:
    ended: list[float] = []

    class Thinking(ScriptedModel):
        async def complete(self, request: CompletionRequest) -> CompletionResponse:
            try:
                await asyncio.sleep(1_000)
            finally:
                ended.append(now())
            return await super().complete(request)

    async with stage() as on:
        on.worker("w", "work")
        one = await on.coordinator(planner=Planner(Thinking([plan(sub("a"))])))
        other = await on.coordinator()
        run = await one.start(TaskRequest(name="t"))
        await asyncio.sleep(5)
        assert ended == []
        asked_at = now()
        assert (await other.cancel(run)).status == "cancelled"
        await until(lambda: ended, "the model is stopped", within_s=5)
        assert ended[0] - asked_at <= 2
        await asyncio.sleep(5)
        assert on.calls == []


def learned(*parts: dict[str, Any], facts: list[Any], guesses: list[Any]) -> dict[str, Any]:
    return {**plan(*parts), "facts": facts, "guesses": guesses}


@virtual
async def test_facts_and_guesses_go_from_plan_to_plan() -> None:
    """What is no text is left out, and a plan that says nothing of them keeps what was known."""
    async with stage() as on:
        on.worker("w", "work", handler=failing("bad", "worse"))
        first = learned(sub("a"), sub("bad", "a"), facts=["bees fly", 7, ""], guesses=["bees sleep"])
        last = learned(sub("c"), facts=["2"], guesses=[])
        model = ScriptedModel([first, plan(sub("b", "a"), sub("worse", "b")), last])
        coordinator = await on.coordinator(planner=Planner(model))
        result = await coordinator.execute(TaskRequest(name="t"))
        assert result.status == "completed"
        for request in model.requests[1:]:
            assert "- bees fly" in request.user
            assert "- bees sleep" in request.user
        kept = await coordinator.ledgers(result.task_id)
        assert (kept.facts, kept.guesses, kept.stalls, kept.replans_left) == (("2",), (), 0, 0)
        assert (kept.plan, kept.finished, kept.version) == ({"a": "done", "b": "done", "c": "done"}, 3, 4)
        news = [entry.body for entry in await told(coordinator, result.task_id) if entry.body["type"] == "facts"]
        assert news == [
            {"type": "facts", "facts": ["bees fly"], "guesses": ["bees sleep"]},
            {"type": "facts", "facts": ["2"], "guesses": []},
        ]


@virtual
async def test_plans_that_finish_nothing_come_to_an_end_before_the_others() -> None:
    async with stage() as on:
        on.worker("w", "work", handler=failing("bad"))
        moving = [plan(sub("bad"), sub(f"good{n}")) for n in range(3)]
        model = ScriptedModel([*moving, *[plan(sub("bad"))] * 20])
        limits = hw.RunLimits(replans=100, stalls=2)
        coordinator = await on.coordinator(planner=Planner(model), limits=limits)
        result = await coordinator.execute(TaskRequest(name="t"))
        assert result.status == "failed"
        assert "3 plans in a row have finished nothing" in result.error
        assert '"bad" failed' in result.error
        assert set(result.output) == {"good0", "good1", "good2"}
        assert len(model.requests) == 6
        stalls = [entry.body["stalls"] for entry in await told(coordinator, result.task_id) if "stalls" in entry.body]
        assert stalls == [1, 2, 3]


@virtual
async def test_the_hard_limits_of_a_run_hold_for_what_handlers_add() -> None:
    async def grow(task: hw.Message, ctx: hw.Context) -> Any:
        name = task.content["subtask"]
        return {"subtasks": [sub(f"{name}.{n}", *([f"{name}.0"] if n else [])) for n in range(3)]}

    async with stage() as on:
        on.worker("w", "work", handler=grow)
        for limits, why in (
            (hw.RunLimits(max_subtasks=12), "at most 12 are allowed"),
            (hw.RunLimits(max_depth=1), "a chain of 2 subtasks; at most 1"),
        ):
            coordinator = await on.coordinator(limits=limits)
            result = await coordinator.execute(TaskRequest(name="t"), plan=plan(sub("a")))
            assert result.status == "failed"
            assert why in result.error
            assert len(result.subtasks) <= 12


@virtual
async def test_a_run_has_the_wall_time_of_its_coordinator_unless_it_has_its_own() -> None:
    async def wait(task: hw.Message, ctx: hw.Context) -> Any:
        await asyncio.sleep(5)

    async with stage() as on:
        on.worker("v", "wait", handler=wait)
        coordinator = await on.coordinator(limits=hw.RunLimits(wall_s=3))
        parts = plan(sub("a", assigned_to="wait"), sub("b", "a", assigned_to="wait"))
        result = await coordinator.execute(TaskRequest(name="t"), plan=parts)
        assert (result.status, result.error) == ("failed", "the run did not end within 3 s")
        assert (await coordinator.execute(TaskRequest(name="t"), plan=parts, timeout_s=60)).status == "completed"


@virtual
async def test_a_task_that_nobody_can_plan_fails_and_says_why() -> None:
    async with stage() as on:
        on.worker("w", "work")
        coordinator = await on.coordinator("no", "never")
        result = await coordinator.execute(TaskRequest(name="t"))
        assert (result.status, result.output) == ("failed", {})
        assert "no JSON object with the field subtasks" in result.error


@virtual
async def test_what_cannot_be_begun_is_refused() -> None:
    async with stage() as on:
        coordinator = await on.coordinator()
        with pytest.raises(NoCapableWorker):
            await coordinator.execute(TaskRequest(name="t"), plan=plan(sub("a")))
        on.worker("w", "work")
        with_team = await on.coordinator(capabilities=[Capability(name="work", needs=("topic",))])
        odd: list[dict[str, Any]] = [plan(sub("a", "ghost")), plan(sub("a", assigned_to="fly")), plan(sub("a")), plan()]
        for bad in odd:
            with pytest.raises(InvalidPlan):
                await with_team.start(TaskRequest(name="t"), plan=bad)
        with pytest.raises(CoordinationError, match="no model"):
            await with_team.start(TaskRequest(name="t"))
        with pytest.raises(CoordinationError, match="no run 'nobody'"):
            await with_team.result("nobody")
        with pytest.raises(CoordinationError, match="no run 'nobody'"):
            await anext(with_team.events("nobody"))
        assert await on.ledger.count_tasks() == 0


@virtual
async def test_the_same_request_is_the_same_run() -> None:
    async with stage() as on:
        on.worker("w", "work", handler=slow)
        coordinators = [await on.coordinator() for _ in range(2)]
        request = TaskRequest(name="t", id="run-1")
        results = await asyncio.gather(*(each.execute(request, plan=plan(sub("a"))) for each in coordinators * 3))
        assert len(set(map(repr, results))) == 1
        assert on.calls == ["a"]


@virtual
async def test_a_run_that_takes_too_long_is_ended() -> None:
    async with stage() as on:

        async def asleep(task: hw.Message, ctx: hw.Context) -> Any:
            await asyncio.sleep(1_000)

        on.worker("w", "work", handler=asleep)
        coordinator = await on.coordinator()
        began = now()
        result = await coordinator.execute(TaskRequest(name="t"), plan=plan(sub("a"), sub("b", "a")), timeout_s=5)
        assert result.status == "failed"
        assert "did not end within 5" in result.error
        assert 5 <= elapsed(began) < 6.5
        one = await coordinator.execute(TaskRequest(name="t"), plan=plan(sub("a", timeout_s=2), sub("b", "a")))
        assert (one.status, one.subtasks) == ("failed", {"a": "failed", "b": "skipped"})
        run = await coordinator.start(TaskRequest(name="t"), plan=plan(sub("a")))
        with pytest.raises(Deadline):
            await coordinator.result(run, timeout_s=1)


@virtual
async def test_cancel_ends_it_and_sends_nothing_more() -> None:
    async with stage() as on:
        on.worker("w", "work", handler=slow)
        coordinator = await on.coordinator()
        run = await coordinator.start(TaskRequest(name="t"), plan=plan(sub("a"), sub("b", "a"), sub("c", "b")))
        waiting = asyncio.create_task(coordinator.result(run))
        await asyncio.sleep(0.15)
        result = await coordinator.cancel(run, "not wanted any more")
        assert (result.status, result.output) == ("cancelled", {"a": {"n": 1}})
        assert await waiting == result
        await asyncio.sleep(5)
        assert on.calls == ["a", "b"]
        assert await coordinator.cancel(run) == result
        assert (await on.ledger.get_task(run)).status is TaskStatus.CANCELLED


@virtual
async def test_nothing_begins_after_a_cancel_has_returned() -> None:
    """Subtasks that wait in the worker's queue, one that runs, and the messages of an outbox that was not sent yet."""
    ended: list[str] = []

    async def long(task: hw.Message, ctx: hw.Context) -> Any:
        try:
            await asyncio.sleep(1_000)
        except asyncio.CancelledError:
            ended.append(task.content["subtask"])
            raise

    async with stage() as on:
        on.worker("w", "work", handler=long, concurrency=2)
        coordinator = await on.coordinator()
        run = await coordinator.start(TaskRequest(name="t"), plan=plan(*(sub(f"s{n}") for n in range(9))))
        other = await coordinator.start(TaskRequest(name="other"), plan=plan(sub("goes on")))
        await until(lambda: len(on.calls) >= 2, "two began")
        began = now()
        await coordinator.cancel(run)
        assert elapsed(began) <= 1
        begun = list(on.calls)
        await until_true(lambda: is_empty(on.protocol), "what waited is taken")
        assert set(on.calls) - set(begun) <= {"goes on"}
        assert set(ended) == set(begun) - {"goes on"}
        assert await on.protocol.dead_letters("w") == []
        assert (await coordinator.state(other)).header.status == "running"


async def is_empty(protocol: hw.Protocol) -> bool:
    return (await protocol.depth("w")).ready == 0


@virtual
async def test_a_subtask_whose_time_is_over_is_stopped_and_its_worker_is_free() -> None:
    async def handle(task: hw.Message, ctx: hw.Context) -> Any:
        if task.content["subtask"] == "slow":
            await asyncio.sleep(1_000)

    async with stage() as on:
        on.worker("w", "work", handler=handle, concurrency=1)
        coordinator = await on.coordinator()
        began = now()
        parts = plan(sub("slow", timeout_s=2, priority=10), sub("next"))
        result = await coordinator.execute(TaskRequest(name="t"), plan=parts)
        assert result.subtasks == {"slow": "failed", "next": "done"}
        assert elapsed(began) < 5


@virtual
async def test_a_stop_that_was_decided_and_not_told_is_told_by_another() -> None:
    """The coordinator that took the cancel in dies before it tells the workers."""
    ended: list[str] = []

    async def long(task: hw.Message, ctx: hw.Context) -> Any:
        try:
            await asyncio.sleep(1_000)
        finally:
            ended.append(task.content["subtask"])

    async with stage() as on:
        on.worker("w", "work", handler=long)
        first = await on.coordinator()
        run = await first.start(TaskRequest(name="t"), plan=plan(sub("a")))
        await until(lambda: on.calls, "it began")
        await first.runs.apply(run, lambda _: [Incoming("cancel:x", Cancel(at=now()))])
        await first.close()
        await on.coordinator()
        await until(lambda: ended, "it is stopped", within_s=5)


@virtual
async def test_what_nobody_can_do_now_keeps_nothing_else_back() -> None:
    """Though it is more than a relay reads at once; and nobody reads it again and again without a rest."""
    async with stage() as on:
        store = CountingStore(clock=now)
        on.worker("w", "work")
        coordinator = await on.coordinator(ledger=StoredLedger(store, migrate=True), team=[("w", ["work", "rare"])])
        odd = [sub(f"odd{n}", "first", assigned_to="rare") for n in range(120)]
        parts = parse_plan(plan(sub("first"), *odd, sub("last", "first", priority=1)), ["work", "rare"])
        coordinator.register_worker("w", ["work"])  # nobody can do the others any more
        await coordinator.begin(new_run("r", parts, ["work", "rare"]))
        await until(lambda: on.calls == ["first", "last"], "what can be done is done", 20)
        reads = store.reads
        await asyncio.sleep(10)
        assert store.reads - reads < 1_000, "it looks again, now and then"
        coordinator.register_worker("w", ["work", "rare"])
        assert (await coordinator.result("r", timeout_s=20)).status == "completed"


@virtual
async def test_many_runs_that_must_wait_hide_no_other_that_was_left_behind() -> None:
    async with stage() as on:
        on.worker("w", "work")
        runs = Runs(on.ledger)

        async def left_behind(run: str, part: dict[str, Any]) -> None:
            state = new_run(run, parse_plan(plan(part), ["work", "rare"]), ["work", "rare"])
            await runs.create(state, Incoming("start", Started(at=now())))

        for number in range(510):
            await left_behind(f"a{number}", sub("x", assigned_to="rare"))
        await left_behind("z", sub("x"))
        coordinator = await on.coordinator()
        assert (await coordinator.result("z", timeout_s=30)).status == "completed"


@virtual
async def test_a_plan_that_no_model_made_is_held_to_the_limits_of_the_run() -> None:
    async with stage() as on:
        on.worker("w", "work")
        wide = plan(*(sub(f"s{n}") for n in range(60)))
        coordinator = await on.coordinator()
        assert (await coordinator.execute(TaskRequest(name="t"), plan=wide)).status == "completed"
        strict = await on.coordinator(limits=hw.RunLimits(max_subtasks=59), name="strict")
        with pytest.raises(InvalidPlan, match="60 subtasks; at most 59 are allowed"):
            await strict.start(TaskRequest(name="t"), plan=wide)


@virtual
async def test_a_run_whose_answers_could_not_arrive_is_refused() -> None:
    async with stage() as on:
        on.worker("w", "work")
        coordinator = await on.coordinator()
        for odd in ("a\nb", "a\x00b", "/a"):
            with pytest.raises(CoordinationError, match="run's id"):
                await coordinator.start(TaskRequest(name="t", id=odd), plan=plan(sub("a")))


@virtual
async def test_a_model_that_breaks_is_not_asked_for_ever() -> None:
    async with stage() as on:
        on.worker("w", "work")
        asked: list[CompletionRequest] = []

        def broken(request: CompletionRequest) -> str:
            asked.append(request)
            raise KeyError("choices")

        coordinator = await on.coordinator(planner=Planner(ScriptedModel(broken)))
        result = await coordinator.execute(TaskRequest(name="t"), timeout_s=60)
        assert result.status == "failed"
        assert "KeyError: 'choices'" in result.error
        assert len(asked) == 1


@virtual
async def test_what_is_finished_takes_no_room_from_a_new_plan() -> None:
    limits = PlanLimits(max_subtasks=2, max_depth=2, budget=2.0)
    trouble = Trouble(errors=("it failed",), finished={f"done{n}": {"n": n} for n in range(5)}, facts=(), guesses=())
    planner = Planner(ScriptedModel([plan(sub("a", "done0", "done4"), sub("b", "a"))]), limits=limits)
    made = await planner.plan(TaskRequest(name="t"), ["work"], trouble)
    assert [subtask.name for subtask in made.subtasks] == ["a", "b"]
    longer = plan(*(sub(name) for name in "abc"))
    with pytest.raises(PlanRefused):
        await Planner(ScriptedModel([longer, longer]), limits=limits).plan(TaskRequest(name="t"), ["work"], trouble)


@virtual
async def test_workers_are_made_registered_and_let_go() -> None:
    async def double(task: hw.Message, ctx: hw.Context) -> Any:
        return {"n": 2 * task.content["input"]["n"]}

    async with stage() as on:
        coordinator = await on.coordinator()
        made = await coordinator.create_worker("doubler", double, role="specialist", concurrency=2)
        assert (made.role, made.capabilities, made.concurrency) == ("specialist", ("doubler",), 2)
        coordinator.register_worker("elsewhere", ["far"])
        parts = plan(sub("a", assigned_to="doubler", input={"n": 4}))
        assert (await coordinator.execute(TaskRequest(name="t"), plan=parts)).output == {"a": {"n": 8}}
        stats = await coordinator.stats()
        assert stats.workers_by_role == {"specialist": 1, "worker": 1}
        assert stats.workers_by_capability == {"doubler": 1, "far": 1}
        assert (stats.tasks["completed"], stats.protocol.messages_sent > 0, stats.at) == (2, True, now())
        assert coordinator.unregister_worker("elsewhere")
        assert not coordinator.unregister_worker("elsewhere")
        with pytest.raises(InvalidPlan, match="far"):
            await coordinator.start(TaskRequest(name="t"), plan=plan(sub("a", assigned_to="far")))


@virtual
async def test_groups_hear_what_is_told_them() -> None:
    heard: list[tuple[str, Any]] = []
    async with stage() as on:
        coordinator = await on.coordinator()
        await coordinator.register_group("reviewers", ["ann", "ben"])
        await coordinator.broadcast({"stop": "the press"}, "reviewers")
        for name in ("ann", "ben"):
            (delivery,) = await on.protocol.receive(name)
            heard.append((name, delivery.message.content))
            await delivery.ack()
    assert heard == [(name, {"stop": "the press"}) for name in ("ann", "ben")]


@virtual
async def test_the_statistics_follow_the_heartbeats_and_nobody_counts_twice() -> None:
    async with stage() as on:
        worker = on.worker("w", "work", handler=slow)
        coordinator = await on.coordinator()
        async with announced(on.protocol, [worker], every_s=0.05):
            await until(lambda: coordinator.workers()[0].concurrency == 16, "a heartbeat came")
            assert [(each.agent, each.status, each.role) for each in coordinator.workers()] == [("w", "idle", "worker")]
            running = asyncio.create_task(coordinator.execute(TaskRequest(name="t"), plan=plan(sub("a"), sub("b"))))
            await until(lambda: coordinator.workers()[0].running == 2, "it is told to be busy")
            stats = await coordinator.stats()
            assert (stats.workers, stats.workers_idle, stats.workers_busy) == (1, 0, 1)
            await running
            await until(lambda: coordinator.workers()[0].status == "idle", "it is told to be idle")


@virtual
async def test_health_names_the_component_that_is_away() -> None:
    async with stage() as on:
        coordinator = await on.coordinator("no plan", "never")
        health = await coordinator.health()
        assert (health.status, health.components["workers"], health.checked_at) == ("degraded", False, now())
        on.worker("w", "work")
        coordinator.register_worker("w", ["work"])
        assert (await coordinator.health()).status == "healthy"
        coordinator._errands.model_trouble = "the model said 529 four times"
        health = await coordinator.health()
        assert (health.status, health.errors) == ("degraded", ("the model said 529 four times",))
        assert [name for name, ok in health.components.items() if not ok] == ["model"]
        await coordinator.close()
        health = await coordinator.health()
        assert (health.status, health.components["coordinator"]) == ("unhealthy", False)


async def told(coordinator: Coordinator, run: str, after: int = 0) -> list[LogEntry]:
    return [entry async for entry in coordinator.events(run, after=after)]


@virtual
async def test_events_are_gap_free_from_any_coordinator() -> None:
    async with stage() as on:

        async def tell(task: hw.Message, ctx: hw.Context) -> Any:
            for n in range(3):
                await ctx.progress(n=n)
                await asyncio.sleep(0.01)

        on.worker("w", "work", handler=tell)
        one, other = [await on.coordinator() for _ in range(2)]
        run = await one.start(TaskRequest(name="t"), plan=plan(sub("a"), sub("b", "a")))
        seen, elsewhere = await asyncio.gather(told(one, run), told(other, run))
        assert seen == elsewhere
        assert [entry.number for entry in seen] == list(range(1, len(seen) + 1))
        assert seen[-1].body == {"type": "run", "status": "done", "reason": ""}
        progress = [entry.body["content"] for entry in seen if entry.body["type"] == "progress"]
        assert len(progress) == 6
        for number in range(len(seen)):
            assert await told(other, run, after=number) == seen[number:]


@virtual
async def test_workers_are_known_by_their_heartbeats_and_leave_when_they_die() -> None:
    async with stage() as on:
        worker = on.worker("w", "work")
        coordinator = await on.coordinator(team=())
        await asyncio.sleep(0)
        assert coordinator.workers() == []
        async with announced(on.protocol, [worker], every_s=1):
            await asyncio.sleep(0.5)
            (member,) = coordinator.workers()
            assert (member.agent, member.capabilities) == ("w", ("work",))
            result = await coordinator.execute(TaskRequest(name="t"), plan=plan(sub("a")))
            assert result.status == "completed"
            assert (await coordinator.health()).status == "healthy"
        await asyncio.sleep(0.5)
        assert coordinator.workers() == []
        assert (await coordinator.health()).status == "degraded"
        dying = announced(on.protocol, [worker], every_s=1)
        await dying.__aenter__()
        await asyncio.sleep(0.5)
        assert len(coordinator.workers()) == 1
        for task in asyncio.all_tasks():
            if task.get_name() == "hivewire-heartbeat":
                task.cancel()  # as if the process were killed: nothing is said
        await asyncio.sleep(4)
        assert coordinator.workers() == []


@virtual
@pytest.mark.parametrize("planned", [False, True], ids=["by a model", "by hand"])
async def test_a_task_that_comes_before_the_heartbeats_is_planned_for_those_who_are_there(planned: bool) -> None:
    """As the guide has it: workers run somewhere, a program makes a coordinator and asks at once."""
    async with stage() as on:
        worker = on.worker("w", "work")
        async with announced(on.protocol, [worker]):
            await asyncio.sleep(0.5)  # they have been there for a while
            made = plan(sub("only"))
            coordinator = await on.coordinator(json.dumps(made), team=())
            result = await coordinator.execute(TaskRequest(name="early"), plan=made if planned else None)
    assert (result.status, on.calls) == ("completed", ["only"])


@virtual
async def test_no_model_is_asked_for_a_plan_that_nobody_could_carry_out() -> None:
    async with stage() as on:
        coordinator = await on.coordinator("never asked for", team=())
        result = await coordinator.execute(TaskRequest(name="alone"))
    assert result.status == "failed"
    assert "no worker is known" in (result.error or "")  # and not what is wrong with the model's answer


@virtual
async def test_a_heartbeat_that_fails_does_not_end_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker that is at work would count as dead, for ever."""
    async with stage() as on:
        worker = on.worker("w", "work")
        coordinator = await on.coordinator(team=())
        broadcast, refused = on.protocol.broadcast, 0

        async def refuse(message: hw.Message, group: str, *, durable: bool = True) -> hw.Receipt:
            nonlocal refused
            refused += 1
            if refused == 2:
                raise PermissionError("a middleware says no")
            return await broadcast(message, group, durable=durable)

        monkeypatch.setattr(on.protocol, "broadcast", refuse)
        async with announced(on.protocol, [worker], every_s=1):
            await asyncio.sleep(7.5)
            assert refused == 8
            assert len(coordinator.workers()) == 1


@virtual
async def test_opened_twice_at_once_it_works_once() -> None:
    async with stage() as on:
        on.worker("w", "work")
        coordinator = Coordinator(None, on.protocol, team=on.workers, name="twice")
        await asyncio.gather(*(coordinator.open() for _ in range(3)))
        assert sum(task.get_name() == "hivewire-twice" for task in asyncio.all_tasks()) == 2
        result = await coordinator.execute(TaskRequest(name="t"), plan=plan(sub("a")))
        assert result.status == "completed"
        await coordinator.close()


@virtual
async def test_work_for_which_nobody_is_there_waits_for_somebody() -> None:
    async with stage() as on:
        worker = on.worker("w", "work", "more")
        coordinator = await on.coordinator(team=[("w", ["work", "more"])])
        alone = await on.coordinator(team=[], name="alone")
        run = await coordinator.start(TaskRequest(name="t"), plan=plan(sub("a"), sub("b", "a", assigned_to="more")))
        assert (await alone.result(run)).status == "completed"
        assert worker.capabilities == ("work", "more")


class Crash(BaseException):
    """The process is dead."""


class DyingStore(MemoryStore):
    """The same tables, seen by a coordinator that dies at its `at`-th write, before or after the commit."""

    def __init__(self, shared: MemoryStore, at: int, *, stored: bool) -> None:
        super().__init__()
        self._shared = shared
        self._left = at
        self._stored = stored
        self.has_died = False

    async def open(self) -> None:
        await self._shared.open()

    async def close(self) -> None:
        pass

    async def read(self, make: Callable[[], Script[Any]]) -> Any:
        if self.has_died:
            raise Crash
        return await self._shared.read(make)

    async def write(self, make: Callable[[], Script[Any]], *, single: bool = False) -> Any:
        if self.has_died:
            raise Crash
        self._left -= 1
        if self._left == 0:
            self.has_died = True
            if self._stored:
                await self._shared.write(make, single=single)
            raise Crash
        return await self._shared.write(make, single=single)


PARTS = plan(sub("a"), sub("b", "a"), sub("c", "a"), sub("bad", "b"), sub("d", "b", "c", timeout_s=50))


async def dies_at(number: int, *, stored: bool) -> bool:
    """A coordinator that dies at that write and another one that goes on. Whether the first one came so far."""
    async with stage() as on:
        on.worker("w", "work", handler=failing("bad"))
        dying = DyingStore(on.store, number, stored=stored)
        answers: Sequence[Answer] = [PARTS, plan(sub("e", "d"))]
        first = Coordinator(
            ScriptedModel(list(answers)), on.protocol, ledger=StoredLedger(dying), team=on.workers, clock=now
        )
        second = await on.coordinator(planner=Planner(ScriptedModel(lambda asked: answers["went wrong" in asked.user])))
        request = TaskRequest(name="t", id="run-1")
        try:
            await first.open()
            await first.start(request)
            await asyncio.sleep(30)
        except (Crash, CoordinationError, Closed):
            pass
        came_so_far = dying.has_died
        await first.close()
        result = await second.execute(request)
        assert (result.status, sorted(result.output)) == ("completed", ["a", "b", "c", "d", "e"])
        assert sorted(on.calls) == ["a", "b", "bad", "c", "d", "e"], "a subtask was done twice"
        parts = await on.ledger.list_tasks(TaskFilter(parent_id="run-1"))
        for part in parts:
            told = [str(entry.status) for entry in await on.ledger.history(part.id)]
            assert told.count("completed") == (part.status is TaskStatus.COMPLETED)
        return came_so_far


@pytest.mark.parametrize("stored", [False, True], ids=["before the commit", "after the commit"])
def test_a_coordinator_may_die_at_every_write(stored: bool) -> None:
    """Another one finishes the run, and no subtask is done twice."""

    @virtual
    async def try_it(number: int) -> bool:
        return await dies_at(number, stored=stored)

    numbers = 0
    while try_it(numbers + 1):
        numbers += 1
        assert numbers < 200
    assert numbers > 10


class StumblingStore(DyingStore):
    """Raises at its `at`-th write something that nobody expects, and works again."""

    async def write(self, make: Callable[[], Script[Any]], *, single: bool = False) -> Any:
        self._left -= 1
        if self._left == 0:
            raise ZeroDivisionError("nobody expects this")
        return await self._shared.write(make, single=single)


@pytest.mark.parametrize("at", range(2, 9))
def test_an_error_that_nobody_expects_holds_nothing_up(at: int, caplog: pytest.LogCaptureFixture) -> None:
    """A loop that ended would keep the messages that its process holds."""

    @virtual
    async def try_it() -> None:
        async with stage() as on:
            on.worker("w", "work")
            stumbling = StoredLedger(StumblingStore(on.store, at, stored=False))
            coordinator = await on.coordinator(ledger=stumbling)
            result = await coordinator.execute(TaskRequest(name="t"), plan=plan(sub("a"), sub("b", "a"), sub("c", "b")))
            assert (result.status, on.calls) == ("completed", ["a", "b", "c"])
            await asyncio.sleep(5)
            assert (await coordinator.health()).status == "healthy"

    try_it()
    assert any(
        "nobody expects this" in str(record.exc_info) + record.getMessage() + str(record.__dict__)
        for record in caplog.records
    )


@virtual
async def test_answers_among_the_dead_letters_are_taken_all_the_same() -> None:
    """They were with several coordinators that died."""
    async with stage() as on:
        on.worker("w", "work")
        first = await on.coordinator()
        run = await first.start(TaskRequest(name="t"), plan=plan(sub("a")))
        await first.close()
        while not (letters := await on.protocol.dead_letters("coordinator")):
            for delivery in await on.protocol.receive("coordinator", wait_s=1):
                await delivery.nack(delay_s=0)
        assert [letter.reason for letter in letters] == ["max_attempts"]
        second = await on.coordinator()
        assert (await second.result(run, timeout_s=20)).status == "completed"
        assert on.calls == ["a"]


@virtual
async def test_answers_behind_many_other_dead_letters_are_taken_too() -> None:
    async with stage() as on:
        on.worker("w", "work")
        await on.protocol.subscribe("coordinator", mode="competing")
        for _ in range(120):
            await on.protocol.send(hw.Message(type="result", sender="w", to="coordinator/nobody", in_reply_to="x"))
        rejected = 0
        while rejected < 120:
            for delivery in await on.protocol.receive("coordinator", wait_s=1):
                await delivery.reject("no such run")
                rejected += 1
        first = await on.coordinator()
        run = await first.start(TaskRequest(name="t"), plan=plan(sub("a")))
        await first.close()
        while len(await on.protocol.dead_letters("coordinator", limit=200)) == rejected:
            for delivery in await on.protocol.receive("coordinator", wait_s=1):
                await delivery.nack(delay_s=0)
        second = await on.coordinator()
        assert (await second.result(run, timeout_s=20)).status == "completed"
        assert on.calls == ["a"]


class AwayStore(MemoryStore):
    """Cannot be written to while it is `away`."""

    away = False

    async def write(self, make: Callable[[], Script[Any]], *, single: bool = False) -> Any:
        if self.away:
            raise ConnectionLost("the store is away")
        return await super().write(make, single=single)


@virtual
async def test_a_dead_letter_that_was_found_while_the_ledger_was_away_still_fails_its_subtask() -> None:
    async with stage() as on:
        store = AwayStore(clock=now)

        async def fails(task: hw.Message, ctx: hw.Context) -> Any:
            store.away = True
            raise hw.Reject("it cannot be done")

        on.worker("w", "work", handler=fails)
        coordinator = await on.coordinator(ledger=StoredLedger(store, migrate=True))
        run = await coordinator.start(TaskRequest(name="t"), plan=plan(sub("a")))
        await until_true(lambda: is_dead(on.protocol, "w"), "it is a dead letter", 20)
        await asyncio.sleep(3)
        store.away = False
        result = await coordinator.result(run, timeout_s=20)
        assert "it cannot be done" in result.error
        assert on.calls == ["a"], "it was done again"


async def is_dead(protocol: hw.Protocol, agent: str) -> bool:
    return bool(await protocol.dead_letters(agent))


async def taken_away(protocol: hw.Protocol, agent: str) -> int:
    """Somebody takes what waits for the agent, and does nothing with it."""
    taken = await protocol.receive(agent, wait_s=1)
    for delivery in taken:
        await delivery.ack()
    return len(taken)


@virtual
async def test_what_vanished_is_sent_anew_and_an_old_answer_does_not_count() -> None:
    async with stage() as on:
        await on.protocol.subscribe("w", mode="competing")
        coordinator = await on.coordinator(team=[("w", ["work"])])
        run = await coordinator.start(TaskRequest(name="t"), plan=plan(sub("a"), sub("b", "a")))
        first = (await coordinator.state(run)).rows["a"]
        while not await taken_away(on.protocol, "w"):
            pass
        on.worker("w", "work")
        result = await coordinator.result(run, timeout_s=20)
        assert (result.status, on.calls) == ("completed", ["a", "b"])
        row = (await coordinator.state(run)).rows["a"]
        assert (row.attempt, row.resends) == (2, 1)
        assert row.message_id != first.message_id


@virtual
async def test_what_vanishes_again_and_again_fails_and_what_lasts_does_not() -> None:
    async with stage() as on:
        coordinator = await on.coordinator(team=[("gone", ["lose"]), ("w", ["work"])])
        parts = plan(sub("a", assigned_to="lose"), sub("b", "a"), sub("c"))
        run = await coordinator.start(TaskRequest(name="t"), plan=parts)

        async def last(task: hw.Message, ctx: hw.Context) -> Any:
            await asyncio.sleep(30)

        on.worker("w", "work", handler=last)
        while not (await coordinator.state(run)).is_finished:
            await taken_away(on.protocol, "gone")
        result = await coordinator.result(run)
        assert result.subtasks == {"a": "failed", "b": "skipped", "c": "done"}
        assert "its message has vanished" in result.error
        assert on.calls == ["c"]
        assert (await coordinator.state(run)).rows["a"].attempt == 4


@virtual
async def test_an_odd_answer_for_no_run_is_kept_as_a_dead_letter() -> None:
    async with stage() as on:
        on.worker("w", "work")
        coordinator = await on.coordinator()
        for to in ("coordinator/nobody", "coordinator"):
            await on.protocol.send(hw.Message(type="result", sender="w", to=to, content=1, in_reply_to="x"))
        await on.protocol.send(hw.Message(type="heartbeat", sender="w", to="coordinator", content={"odd": 1}))
        result = await coordinator.execute(TaskRequest(name="t"), plan=plan(sub("a")))
        assert result.status == "completed"
        await asyncio.sleep(1)
        letters = await on.protocol.dead_letters("coordinator")
        assert [letter.message.to for letter in letters if letter.message] == ["coordinator/nobody", "coordinator"]


@virtual
async def test_it_must_be_open_and_closes_twice() -> None:
    async with stage() as on:
        on.worker("w", "work")
        coordinator = Coordinator(None, on.protocol, team=on.workers, clock=now)
        with pytest.raises(Closed):
            await coordinator.execute(TaskRequest(name="t"), plan=plan(sub("a")))
        async with coordinator:
            assert (await coordinator.execute(TaskRequest(name="t"), plan=plan(sub("a")))).status == "completed"
        await coordinator.close()


@virtual
async def test_an_effect_stays_done_over_retries_and_a_new_plan() -> None:
    """The second plan has the subtask again, as another message, done by another worker."""
    charged: list[str] = []
    seen: list[Any] = []

    async def pay(task: hw.Message, ctx: hw.Context) -> Any:
        async def charge() -> int:
            charged.append(ctx.effect_key("charge"))
            return 7

        seen.append((ctx.message.id, ctx.effect_key("charge"), await ctx.once("charge", charge)))
        if len(seen) <= 2:  # both attempts of the first plan
            raise OSError("after the effect")
        return {"paid": 7}

    async with stage() as on:
        on.worker("one", "work", handler=pay)
        on.worker("two", "work", handler=pay)
        coordinator = await on.coordinator(plan(sub("pay")), plan(sub("pay"), sub("then", "pay")))
        result = await coordinator.execute(TaskRequest(name="pay once"))
    assert result.status == "completed"
    assert len(charged) == 2  # of `pay` and of `then`, which is a subtask of its own
    of_pay = [each for each in seen if each[1] == charged[0]]
    assert len(of_pay) == 3
    assert len({message for message, _, _ in of_pay}) == 2
    assert {value for _, _, value in seen} == {7}


@virtual
async def test_effects_of_a_worker_can_be_remembered_in_the_ledger() -> None:
    computed: list[int] = []

    async def pay(task: hw.Message, ctx: hw.Context) -> Any:
        async def charge() -> int:
            computed.append(ctx.attempt)
            return 7

        value = await ctx.once("charge", charge)
        if ctx.attempt == 1:
            raise OSError("after the effect")
        return {"paid": value}

    async with stage() as on:
        on.worker("w", "work", handler=pay).effects = hw.LedgerEffects(on.ledger)
        coordinator = await on.coordinator()
        result = await coordinator.execute(TaskRequest(name="pay"), plan=plan(sub("pay")))
        effects = [task for task in await on.ledger.list_tasks() if task.type == "effect"]
    assert result.output == {"pay": {"paid": 7}}
    assert computed == [1]
    assert [(task.status, task.output) for task in effects] == [(TaskStatus.COMPLETED, 7)]
