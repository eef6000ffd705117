"""Workers, groups, health and events as coordinators know them, on virtual time."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest

import hivewire as hw
from hivewire.coordination.coordinator import Coordinator
from hivewire.coordination.tasks import TaskRequest
from hivewire.coordination.team import announced
from hivewire.errors import CoordinationError, InvalidPlan
from hivewire.testing.conformance.waiting import until
from hivewire.testing.virtual_time import virtual
from tests.unit.coordinator_stage import (
    now,
    plan,
    slow,
    stage,
    sub,
    told,
)


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


async def test_where_a_healthy_store_is_is_no_error(tmp_path: Path) -> None:
    async with (
        hw.connect(f"sqlite:///{tmp_path}/messages.db") as protocol,
        hw.open_ledger(f"sqlite:///{tmp_path}/ledger.db") as ledger,
        Coordinator(None, protocol, ledger=ledger, team=[("w", ["work"])]) as coordinator,
    ):
        health = await coordinator.health()
        assert (health.status, health.errors) == ("healthy", ())


@virtual
@pytest.mark.parametrize(
    "wrong",
    [{"name": 5}, {"input": 5}, {"input": None}, {"id": 5}, {"priority": "high"}, {"description": b"x"}],
    ids=str,
)
async def test_a_task_that_is_none_is_refused_in_one_sentence(wrong: dict[str, Any]) -> None:
    async with stage() as on:
        on.worker("w", "work")
        coordinator = await on.coordinator()
        (field,) = wrong
        with pytest.raises(CoordinationError, match=f"^the {field} of a task is of type "):
            await coordinator.execute(TaskRequest(**{"name": "t", **wrong}), plan=plan(sub("a", "work")))
        with pytest.raises(CoordinationError, match=r"a hivewire\.TaskRequest is carried out, not dict"):
            await coordinator.execute({"name": "t"}, plan=plan(sub("a", "work")))  # type: ignore[arg-type]  # on purpose
        for timeout_s in ("9s", -1, float("nan")):
            with pytest.raises(hw.MessageError, match="timeout_s is a number of seconds"):
                await coordinator.execute(TaskRequest(name="t"), plan=plan(sub("a", "work")), timeout_s=timeout_s)  # type: ignore[arg-type]  # on purpose
        assert (await coordinator.stats()).tasks["total"] == 0


@pytest.mark.parametrize("value", [{1, 2}, float("nan"), "\ud800", {1: 2}], ids=["set", "nan", "half", "key"])
@virtual
async def test_an_input_that_is_no_json_is_refused_before_anything_is_stored(value: Any) -> None:
    async with stage() as on:
        on.worker("w", "work")
        coordinator = await on.coordinator()
        with pytest.raises(CoordinationError, match="the input of a task cannot be kept as JSON"):
            await coordinator.execute(TaskRequest(name="t", input={"v": value}), plan=plan(sub("a", "work")))
        with pytest.raises(CoordinationError, match="the plan cannot be kept as JSON"):
            await coordinator.execute(TaskRequest(name="t"), plan=plan(sub("a", "work", input={"v": value})))
        assert (await coordinator.stats()).tasks["total"] == 0


@virtual
async def test_an_integer_without_end_is_no_input() -> None:
    async with stage() as on:
        on.worker("w", "work")
        coordinator = await on.coordinator()
        with pytest.raises(CoordinationError, match="the input of a task cannot be kept as JSON"):
            await coordinator.execute(TaskRequest(name="t", input={"n": 10**5_000}), plan=plan(sub("a", "work")))


@virtual
async def test_a_plan_may_be_any_mapping() -> None:
    async with stage() as on:
        on.worker("w", "work")
        coordinator = await on.coordinator()
        result = await coordinator.execute(TaskRequest(name="t"), plan=MappingProxyType(plan(sub("a"))))
        assert result.status == "completed"


@virtual
async def test_a_coordinator_that_is_closed_meanwhile_makes_no_worker() -> None:
    async def work(task: hw.Message, ctx: hw.Context) -> None:
        raise AssertionError

    async with stage() as on:
        coordinator = await on.coordinator()
        subscribe, asked, goes_on = on.protocol.subscribe, asyncio.Event(), asyncio.Event()

        async def slowly(*args: Any, **how: Any) -> None:
            asked.set()
            await goes_on.wait()
            await subscribe(*args, **how)

        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(on.protocol, "subscribe", slowly)
            making = asyncio.create_task(coordinator.create_worker("late", work))
            await asked.wait()
            await coordinator.close()
            goes_on.set()
            with pytest.raises(hw.HivewireError):
                await making
        assert "hivewire-worker-late" not in {task.get_name() for task in asyncio.all_tasks()}


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"llm": "openai:gpt-4.1"}, "a coordinator's model is what hivewire.llm.connect_model gives"),
        ({"protocol": "memory://"}, "a coordinator's protocol is what hivewire.connect gives, not 'memory://'"),
        ({"name": "a b"}, "can not name an agent"),
        ({"lease_s": 0}, "lease_s of a coordinator is above 0"),
        ({"limits": 5}, r"the limits of runs are a hivewire\.RunLimits, not 5"),
        ({"limits": hw.RunLimits(replans=-1)}, "replans of RunLimits is a whole number, at least 0, not -1"),
        ({"limits": hw.RunLimits(wall_s=float("nan"))}, "wall_s of RunLimits is a number of seconds"),
        ({"team": hw.Worker("w")}, "a team is a list of workers, not <"),
        ({"team": ["w"]}, r"in a team are workers, or tuples \(name, capabilities\), not 'w'"),
        ({"team": [("w", "work")]}, "the capabilities of w are a list of names, not 'work'"),
    ],
    ids=["llm", "protocol", "name", "lease", "limits", "replans", "wall", "team", "member", "capabilities"],
)
async def test_what_is_no_part_of_a_coordinator_is_refused_when_it_is_made(wrong: dict[str, Any], said: str) -> None:
    async with hw.connect("memory://") as protocol:
        with pytest.raises(hw.SettingsError, match=said):
            Coordinator(**{"llm": None, "protocol": protocol, **wrong})


@virtual
async def test_a_worker_that_could_not_be_served_is_not_made() -> None:
    """It would be waited for: nobody else could be given its subtasks' messages."""

    async def work(task: hw.Message, ctx: hw.Context) -> None:
        raise AssertionError

    async with stage() as on:
        coordinator = await on.coordinator()
        await on.protocol.subscribe("taken", mode="ordered")
        with pytest.raises(hw.Unsupported, match="ordered"):
            await coordinator.create_worker("taken", work)
        assert coordinator.workers() == []
        with pytest.raises(hw.SettingsError, match="the capabilities of far are a list of names, not 'work'"):
            coordinator.register_worker("far", "work")


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
async def test_who_waits_is_told_that_the_protocol_was_closed_under_the_coordinator() -> None:
    """It would be waited for without an end, with two tracebacks in the log each half second."""
    async with (
        hw.connect("memory://closed-early") as protocol,
        Coordinator(None, protocol, team=[("far", ["work"])], clock=now) as coordinator,
    ):
        run = await coordinator.start(TaskRequest(name="t"), plan=plan(sub("a", assigned_to="work")))
        waiting = asyncio.create_task(coordinator.result(run))
        await asyncio.sleep(1)
        await protocol.close()
        async with asyncio.timeout(10):
            with pytest.raises(CoordinationError, match="the coordinator has ended: Closed"):
                await waiting
        with pytest.raises(CoordinationError, match="the coordinator has ended: Closed"):
            await coordinator.start(TaskRequest(name="t"), plan=plan(sub("a", assigned_to="work")))


@virtual
async def test_work_for_which_nobody_is_there_waits_for_somebody() -> None:
    async with stage() as on:
        worker = on.worker("w", "work", "more")
        coordinator = await on.coordinator(team=[("w", ["work", "more"])])
        alone = await on.coordinator(team=[], name="alone")
        run = await coordinator.start(TaskRequest(name="t"), plan=plan(sub("a"), sub("b", "a", assigned_to="more")))
        assert (await alone.result(run)).status == "completed"
        assert worker.capabilities == ("work", "more")
