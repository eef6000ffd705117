"""Tasks are planned, carried out and told of truly, on virtual time."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

import hivewire as hw
from hivewire.coordination.coordinator import Coordinator
from hivewire.coordination.ledger import TaskFilter, TaskStatus
from hivewire.coordination.ledger.runs import Runs
from hivewire.coordination.ledger.stored import StoredLedger
from hivewire.coordination.planner import Planner
from hivewire.coordination.tasks import TaskRequest, TaskResult, Trouble
from hivewire.errors import (
    Closed,
    CoordinationError,
    Deadline,
    InvalidPlan,
    NoCapableWorker,
    PlanRefused,
)
from hivewire.llm.contract import CompletionRequest
from hivewire.rules.plan import parse_plan
from hivewire.rules.plan_limits import Capability, PlanLimits
from hivewire.rules.plan_state import Cancel, Incoming, Started, new_run
from hivewire.testing.conformance.waiting import until, until_true
from hivewire.testing.scripted_model import ScriptedModel
from hivewire.testing.virtual_time import virtual
from tests.unit.coordinator_stage import (
    CountingStore,
    Handler,
    elapsed,
    now,
    plan,
    slow,
    stage,
    sub,
)


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
