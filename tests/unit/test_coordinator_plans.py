"""Failures, models that plan again, and the limits of both, on virtual time."""

from __future__ import annotations

import asyncio
from typing import Any

import hivewire as hw
from hivewire.coordination.ledger import TaskFilter
from hivewire.coordination.planner import Planner
from hivewire.coordination.tasks import TaskRequest
from hivewire.llm.contract import CompletionRequest, CompletionResponse
from hivewire.testing.conformance.waiting import until
from hivewire.testing.scripted_model import ScriptedModel
from hivewire.testing.virtual_time import virtual
from tests.unit.coordinator_stage import (
    failing,
    now,
    plan,
    stage,
    sub,
    told,
)


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
