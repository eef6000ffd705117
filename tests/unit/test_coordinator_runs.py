"""One coordinator for one run, as the commands use it: real workers, real messages in memory, no other process."""

from __future__ import annotations

import asyncio
import secrets
import sqlite3
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from hivewire.cli.team_job import check_team
from hivewire.coordination.coordinator import Coordinator
from hivewire.coordination.ledger.runs import Runs
from hivewire.coordination.ledger.sqlite import MemoryStore, SQLiteStore
from hivewire.coordination.ledger.stored import StoredLedger
from hivewire.coordination.roster import Roster
from hivewire.coordination.watcher import Watcher
from hivewire.coordination.worker import Context, Worker
from hivewire.errors import HivewireError, NoCapableWorker, Reject
from hivewire.factory import connect
from hivewire.message import Message
from hivewire.protocol import Protocol
from hivewire.rules.plan import Plan, Subtask
from hivewire.rules.plan_state import Row, RunState, new_run
from hivewire.rules.retry import Retry
from hivewire.testing.conformance.waiting import until_true
from tests.unit.dying import Crash
from tests.unit.runs_in_a_file import FileStore


def sub(name: str, capability: str, *after: str, **fields: Any) -> Subtask:
    return Subtask(name=name, assigned_to=capability, dependencies=after, **fields)


class Counts(Watcher):
    """How often which subtask's message was sent and answered."""

    def __init__(self) -> None:
        self.sent_names: list[str] = []
        self.unexpected = 0

    def sent(self, message: Message) -> None:
        self.sent_names.append(message.content["subtask"])

    def answered(self, message: Message, row: Row | None) -> None:
        self.unexpected += row is None


class Team:
    """A protocol, a ledger, and workers that are served in the background."""

    def __init__(self, url: str, workers: Sequence[Worker]) -> None:
        self.url = url
        self.workers = workers
        self.roster = Roster((worker.name, worker.capabilities) for worker in workers)
        self.ledger = StoredLedger(MemoryStore(), migrate=True)
        self.counts = Counts()
        self.state: RunState | None = None

    def start(self, *subtasks: Subtask, deadline_s: float | None = None, **run_input: Any) -> None:
        plan = Plan(subtasks=subtasks)
        self.state = new_run("r", plan, self.roster.capabilities, run_input, timeout_s=deadline_s)

    def coordinator(self, protocol: Protocol, ledger: StoredLedger | None = None) -> Coordinator:
        return Coordinator(
            None, protocol, ledger=ledger or self.ledger, team=self.workers, name="run-r", discover=False,
            watcher=self.counts,
        )  # fmt: skip

    async def execute(self, protocol: Protocol, ledger: StoredLedger | None = None) -> RunState:
        """Up to the run's end, and until nothing of it lies in the mailbox any more."""
        assert self.state is not None
        async with self.coordinator(protocol, ledger) as coordinator:
            await coordinator.begin(self.state)
            await coordinator.result("r")

            async def is_drained() -> bool:
                depth = await protocol.depth("run-r")
                return depth.ready + depth.in_flight == 0

            await until_true(is_drained, "the mailbox is empty")
            return await coordinator.state("r")


@asynccontextmanager
async def team(*workers: Worker, **settings: Any) -> AsyncIterator[tuple[Team, Protocol]]:
    url = f"memory://{secrets.token_hex(8)}"
    made = Team(url, workers)
    both = connect(url, **settings), connect(url, **settings)
    async with both[0] as protocol, both[1] as theirs, asyncio.TaskGroup() as group:
        serving = [group.create_task(worker.serve(theirs, drain_s=1)) for worker in workers]
        try:
            yield made, protocol
        finally:
            for task in serving:
                task.cancel()
            await made.ledger.close()


def worker(name: str, *capabilities: str, **fields: Any) -> Worker:
    return Worker(name, capabilities=capabilities or (name,), **fields)


async def test_outputs_reach_dependents_and_independent_subtasks_overlap() -> None:
    both = asyncio.Barrier(2)
    work, join = worker("work"), worker("join")

    @work.on("task")
    async def half(task: Message, ctx: Context) -> Any:
        async with asyncio.timeout(10):
            await both.wait()  # passes only if the other one runs at the same time
        return {"by": task.content["subtask"], "paths": task.content["input"]["paths"]}

    @join.on("task")
    async def whole(task: Message, ctx: Context) -> Any:
        return task.content["outputs"]

    async with team(work, join) as (made, protocol):
        made.start(sub("a", "work"), sub("b", "work"), sub("c", "join", "a", "b"), paths=["x"])
        state = await made.execute(protocol)
    assert state.header.status == "done"
    assert state.rows["c"].output == {"a": {"by": "a", "paths": ["x"]}, "b": {"by": "b", "paths": ["x"]}}
    assert sorted(made.counts.sent_names) == ["a", "b", "c"]
    assert made.counts.unexpected == 0


async def test_a_review_is_done_again_with_feedback_and_more_work() -> None:
    find, write, check = worker("find"), worker("write"), worker("check")
    seen: list[Any] = []

    @find.on("task")
    async def found(task: Message, ctx: Context) -> Any:
        names = ["part-1", "part-2"]
        return {"subtasks": [{"name": name, "assigned_to": "write", "dependencies": ["find"]} for name in names]}

    @write.on("task")
    async def written(task: Message, ctx: Context) -> Any:
        seen.append((task.content["subtask"], task.content["attempt"], task.content["feedback"]))
        return {"length": task.content["attempt"]}

    @check.on("task")
    async def checked(task: Message, ctx: Context) -> Any:
        lengths = {name: output["length"] for name, output in task.content["outputs"].items() if name != "find"}
        if lengths["part-2"] < 3:
            return {"send_back": {"subtask": "part-2", "feedback": f"{lengths['part-2']} is too short"}}
        return {"lengths": lengths}

    async with team(find, write, check) as (made, protocol):
        made.start(sub("find", "find"), sub("check", "check", "part-*", "find"))
        state = await made.execute(protocol)
    assert state.header.status == "done"
    assert state.rows["check"].output == {"lengths": {"part-1": 1, "part-2": 3}}
    again = [("part-2", 2, "1 is too short"), ("part-2", 3, "2 is too short")]
    assert sorted(seen[:2]) == [("part-1", 1, None), ("part-2", 1, None)]
    assert seen[2:] == again


async def test_messages_that_end_as_dead_letters_fail_their_subtasks() -> None:
    work = worker("work")

    @work.on("task", retry=Retry(max_attempts=2, first_s=0.0, most_s=0.0))
    async def fails(task: Message, ctx: Context) -> Any:
        if task.content["subtask"] == "refused":
            raise Reject("not for me")
        if task.content["subtask"] == "broken":
            raise ValueError("wrong number")
        return {"fine": True}

    async with team(work) as (made, protocol):
        made.start(
            sub("refused", "work"), sub("broken", "work"), sub("fine", "work"), sub("after", "work", "fine", "broken")
        )
        state = await made.execute(protocol)
    assert {name: row.status for name, row in state.rows.items()} == {
        "refused": "failed",
        "broken": "failed",
        "fine": "done",
        "after": "skipped",
    }
    assert state.header.status == "failed"
    assert "not for me" in state.rows["refused"].error
    assert "2 attempts: ValueError: wrong number" in state.rows["broken"].error
    assert "broken" in state.rows["after"].error


async def test_a_timeout_ends_a_subtask_and_its_late_result_is_ignored() -> None:
    work = worker("work")
    free = asyncio.Event()

    @work.on("task")
    async def slow(task: Message, ctx: Context) -> Any:
        await free.wait()
        return {}

    async with team(work) as (made, protocol):
        made.start(sub("slow", "work", timeout_s=0.3), sub("other", "work", "slow"))
        state = await made.execute(protocol)
        free.set()
    assert state.rows["slow"].error == "no result within 0.3 s of its start"
    assert state.rows["other"].status == "skipped"


async def test_the_time_of_a_subtask_counts_from_its_start_not_from_its_sending() -> None:
    work = worker("work", concurrency=1)

    @work.on("task")
    async def busy(task: Message, ctx: Context) -> Any:
        await asyncio.sleep(0.4)
        return {}

    async with team(work) as (made, protocol):
        made.start(*(sub(f"s{number}", "work", timeout_s=0.9) for number in range(4)))
        state = await made.execute(protocol)
    assert {row.status for row in state.rows.values()} == {"done"}


async def test_a_deadline_ends_the_run_and_no_mailbox_is_left() -> None:
    work = worker("work")

    @work.on("task")
    async def endless(task: Message, ctx: Context) -> Any:
        await asyncio.sleep(60)

    async with team(work) as (made, protocol):
        made.start(sub("a", "work"), sub("b", "work", "a"), deadline_s=0.3)
        state = await made.execute(protocol)
        await protocol.forget("run-r")
        assert not [agent for agent in await protocol.agents() if agent.startswith("run-")]
    assert state.header.status == "failed"
    assert "within 0.3 s" in state.header.reason
    assert {row.status for row in state.rows.values()} == {"cancelled"}


async def test_outputs_too_large_to_send_on_fail_with_the_reason() -> None:
    work = worker("work")

    @work.on("task")
    async def large(task: Message, ctx: Context) -> Any:
        return {"text": "x" * 6_000}

    async with team(work, max_message_size_bytes=10_000) as (made, protocol):
        made.start(sub("a", "work"), sub("b", "work"), sub("both", "work", "a", "b"), sub("one", "work", "a"))
        state = await made.execute(protocol)
    assert state.rows["one"].status == "done"
    assert state.rows["both"].status == "failed"
    assert "cannot be sent" in state.rows["both"].error


async def test_results_of_strangers_and_doubled_results_change_nothing() -> None:
    work = worker("work")

    @work.on("task")
    async def twice(task: Message, ctx: Context) -> Any:
        await ctx.send("result", task.metadata["reply_to"], {"n": 1}, in_reply_to=task.id)
        await ctx.send("result", task.metadata["reply_to"], {"n": 9}, in_reply_to="somebody else's")
        await ctx.progress(done=1)
        return {"n": 2}

    async with team(work) as (made, protocol):
        made.start(sub("a", "work"), sub("b", "work", "a"))
        state = await made.execute(protocol)
        assert (await protocol.depth("run-r")).ready == 0
    assert state.header.status == "done"
    assert [row.attempt for row in state.rows.values()] == [1, 1]
    assert made.counts.sent_names == ["a", "b"]
    assert made.counts.unexpected >= 3


async def test_the_result_of_an_earlier_attempt_is_not_taken_for_that_of_the_next() -> None:
    write, check = worker("write"), worker("check")
    first: list[str] = []

    @write.on("task")
    async def written(task: Message, ctx: Context) -> Any:
        first.append(task.id)
        if task.content["attempt"] == 2:  # a result of the first attempt turns up again
            await ctx.send("result", task.metadata["reply_to"], {"attempt": "stale"}, in_reply_to=first[0])
            async with connect(ctx.protocol.settings) as other:  # type: ignore[attr-defined]  # the engine has them
                while (await other.depth("run-r")).ready + (await other.depth("run-r")).in_flight:
                    await other.receive("nobody", wait_s=0.05)
        return {"attempt": task.content["attempt"]}

    @check.on("task")
    async def checked(task: Message, ctx: Context) -> Any:
        attempt = task.content["outputs"]["write"]["attempt"]
        return {"send_back": {"subtask": "write", "feedback": "again"}} if attempt == 1 else {"saw": attempt}

    async with team(write, check) as (made, protocol):
        made.start(sub("write", "write"), sub("check", "check", "write"))
        state = await made.execute(protocol)
    assert state.header.status == "done"
    assert state.rows["check"].output == {"saw": 2}
    assert made.counts.unexpected == 1


async def test_a_coordinator_that_ended_is_replaced_and_finished_work_is_not_done_again() -> None:
    work = worker("work")
    started: list[str] = []
    reached = asyncio.Event()
    free = asyncio.Event()

    @work.on("task")
    async def step(task: Message, ctx: Context) -> Any:
        started.append(task.content["subtask"])
        if task.content["subtask"] == "b":
            reached.set()
            await free.wait()
        return {}

    async with team(work) as (made, protocol):
        made.start(sub("a", "work"), sub("b", "work", "a"), sub("c", "work", "b"))
        first = asyncio.create_task(made.execute(protocol))
        await asyncio.wait_for(reached.wait(), 10)
        first.cancel()
        await asyncio.wait([first])
        free.set()
        state = await made.execute(protocol)
    assert state.header.status == "done"
    assert started == ["a", "b", "c"]


@pytest.mark.parametrize("statements", range(1, 60, 6))
async def test_a_coordinator_that_dies_at_any_statement_is_replaced(tmp_path: Path, statements: int) -> None:
    work = worker("work")
    done: list[str] = []

    @work.on("task")
    async def step(task: Message, ctx: Context) -> Any:
        done.append(task.content["subtask"])
        makes = [{"name": f"made-{n}", "assigned_to": "work", "dependencies": ["a"]} for n in range(3)]
        return {"subtasks": makes if task.content["subtask"] == "a" else []}

    crashes = 0
    path = tmp_path / "ledger.db"
    async with team(work) as (made, _):
        made.start(sub("a", "work"), sub("b", "work", "a"), sub("c", "work", "b", "made-*"))
        while True:
            store = FileStore(path)
            ledger = StoredLedger(store, migrate=True)
            await ledger.open()
            store.dies_at(statements + 25 * crashes)
            try:
                async with connect(made.url) as protocol:
                    state = await asyncio.wait_for(made.execute(protocol, ledger), 20)
                break
            except (Crash, HivewireError, sqlite3.Error, BaseExceptionGroup):
                crashes += 1
            finally:
                store.put_away()
    assert crashes > 0
    assert state.header.status == "done"
    assert sorted(done) == ["a", "b", "c", "made-0", "made-1", "made-2"]


async def test_two_coordinators_of_one_run_do_its_work_once(tmp_path: Path) -> None:
    work = worker("work")
    started: list[str] = []

    @work.on("task")
    async def step(task: Message, ctx: Context) -> Any:
        started.append(task.content["subtask"])
        return {}

    async with team(work) as (made, protocol):
        names = [f"s{n}" for n in range(30)]
        made.start(*[sub(name, "work", *names[max(0, n - 2) : n]) for n, name in enumerate(names)])
        ledgers = [StoredLedger(SQLiteStore(tmp_path / "ledger.db"), migrate=True) for _ in range(2)]  # two processes
        for ledger in ledgers:
            await ledger.open()
        async with connect(made.url) as other:
            states = await asyncio.gather(made.execute(protocol, ledgers[0]), made.execute(other, ledgers[1]))
        for ledger in ledgers:
            await ledger.close()
    assert [state.header.status for state in states] == ["done", "done"]
    assert started == names


async def test_a_run_goes_on_after_its_store_of_messages_was_removed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hivewire.coordination.missing._QUIET_S", 0.2)
    monkeypatch.setattr("hivewire.coordination.missing._LOOK_S", 0.1)
    work = worker("work")

    @work.on("task")
    async def step(task: Message, ctx: Context) -> Any:
        return {}

    async with team(work) as (made, protocol):
        made.start(sub("a", "work"), sub("b", "work", "a"))
        async with connect(f"memory://{secrets.token_hex(8)}") as removed:
            first = asyncio.create_task(made.execute(removed))
            assert await removed.receive("work", wait_s=5)
            await until_true(lambda: is_sent(made), "the outbox is empty")
            first.cancel()
            await asyncio.wait([first])
        state = await asyncio.wait_for(made.execute(protocol), 30)
    assert state.header.status == "done"
    assert [row.attempt for row in state.rows.values()] == [2, 1]


async def is_sent(made: Team) -> bool:
    return (await Runs(made.ledger).decided("r")) == ([], None)


def test_a_run_cannot_go_on_with_a_team_that_lacks_a_capability() -> None:
    state = new_run("r", Plan(subtasks=(sub("a", "work"),)), ["work"])
    with pytest.raises(NoCapableWorker, match='capability "work"'):
        check_team(state, Roster([("other", ["fly"])]))
    check_team(state, Roster([("other", ["fly", "work"])]))


async def test_a_cancelled_run_ends_at_once() -> None:
    work = worker("work")
    started = asyncio.Event()

    @work.on("task")
    async def stuck(task: Message, ctx: Context) -> Any:
        started.set()
        await asyncio.Event().wait()

    async with team(work) as (made, protocol):
        made.start(sub("a", "work"), sub("b", "work", "a"))
        executing = asyncio.create_task(made.execute(protocol))
        await started.wait()
        async with made.coordinator(protocol) as other:
            await other.cancel("r", "asked to")
        state = await asyncio.wait_for(executing, 10)
    assert state.header.status == "cancelled"
    assert {row.status for row in state.rows.values()} == {"cancelled"}
