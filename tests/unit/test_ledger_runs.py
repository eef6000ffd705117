"""What the store has taken in is there after a crash at any point, and nothing is taken in twice."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

import msgspec
import pytest

from hivewire.coordination.ledger import run_scripts
from hivewire.coordination.ledger.store import Query, Row, Script, Statement
from hivewire.errors import CoordinationError
from hivewire.rules.plan import Plan, Subtask
from hivewire.rules.plan_state import (
    Begun,
    Dispatch,
    Event,
    Incoming,
    RunState,
    SendBack,
    Timer,
    dump,
    event_of,
    new_run,
)
from tests.unit.dying import Crash
from tests.unit.runs_in_a_file import KeptRuns


def sub(name: str, *after: str, **fields: Any) -> Subtask:
    return Subtask(name=name, assigned_to="work", dependencies=after, **fields)


PLAN = Plan(name="plan", subtasks=(sub("find"), sub("write", "find", "mine-*", timeout_s=60.0), sub("review", "write")))
MINES = {"subtasks": [{"name": f"mine-{n}", "assigned_to": "work", "dependencies": ["find"]} for n in range(3)]}


def started(store: KeptRuns, run: str = "r", plan: Plan = PLAN) -> RunState:
    state = store.create(new_run(run, plan, ["work"]))
    assert state is not None
    return state


def answer_for(state: RunState, name: str) -> Incoming:
    """What the worker of this attempt answers: find returns more work, review sends back once."""
    row = state.rows[name]
    event: Event = event_of(row, MINES if name == "find" else {"by": name}, 2.0)
    if name == "review" and state.rows["write"].send_backs == 0:
        event = SendBack(at=2.0, version=row.version, subtask=name, attempt=row.attempt, target="write", feedback="x")
    return Incoming(f"answer-{row.message_id}", event)


def running(state: RunState) -> list[str]:
    return [name for name, row in state.rows.items() if row.status == "running"]


def test_a_step_is_kept_with_its_commands_until_they_are_sent(tmp_path: Path) -> None:
    store = KeptRuns(tmp_path / "runs.db")
    state = started(store)
    store.close()
    again = KeptRuns(tmp_path / "runs.db")
    assert again.load("r").rows == state.rows
    [command] = again.outbox("r")
    assert (command.subtask, command.id) == ("find", state.rows["find"].message_id)
    again.sent("r", [command.id])
    assert again.outbox("r") == []
    assert again.unfinished() == ["r"]
    again.close()


def test_an_event_that_comes_again_changes_nothing() -> None:
    store = KeptRuns()
    state = started(store)
    answer = answer_for(state, "find")
    first, commands = store.apply("r", [answer, answer])
    assert len(commands) == 3
    assert store.apply("r", [answer]) == (first, [])
    assert first.header.seq == 2
    store.close()


def test_an_event_is_known_by_its_id_alone() -> None:
    store = KeptRuns()
    state = started(store, plan=Plan(subtasks=(sub("a"), sub("b"))))
    store.apply("r", [Incoming("x", answer_for(state, "a").event)])
    state, commands = store.apply("r", [Incoming("x", answer_for(state, "b").event)])
    assert running(state) == ["b"]
    assert commands == []
    store.close()


def test_subtasks_keep_their_order_when_others_are_replaced(tmp_path: Path) -> None:
    store = KeptRuns(tmp_path / "runs.db")
    state = started(store, plan=Plan(subtasks=(sub("find"), sub("other"), sub("end", "find", "m-*"))))

    def makes(*names: str) -> dict[str, Any]:
        return {"subtasks": [{"name": f"m-{name}", "assigned_to": "work"} for name in names]}

    state, _ = store.apply("r", [Incoming("1", event_of(state.rows["find"], makes("a", "b", "c", "d"), 1.0))])
    state, _ = store.apply("r", [Incoming("2", event_of(state.rows["other"], makes("y", "z"), 1.0))])
    for name in ("m-a", "m-b", "m-c", "m-d", "m-y", "m-z"):
        state, _ = store.apply("r", [answer_for(state, name)])
    row = state.rows["end"]
    back = SendBack(at=2.0, version=row.version, subtask="end", attempt=row.attempt, target="find", feedback="")
    state, _ = store.apply("r", [Incoming("3", back)])
    state, _ = store.apply("r", [Incoming("4", event_of(state.rows["find"], makes("d", "x"), 3.0))])
    assert state.rows["m-d"].attempt == 1  # as before, and depends on nothing: not done again
    again = KeptRuns(tmp_path / "runs.db")
    assert list(again.load("r").rows) == list(state.rows)
    assert list(state.rows) == ["find", "other", "end", "m-d", "m-y", "m-z", "m-x"]
    store.close()
    again.close()


def test_a_subtask_that_is_added_writes_no_others_anew() -> None:
    store = KeptRuns()
    state = started(store, plan=Plan(subtasks=tuple(sub(f"s{n}") for n in range(200))))
    before = store.store.connection.db.total_changes
    more = {"subtasks": [{"name": "more", "assigned_to": "work"}]}
    store.apply("r", [Incoming("1", event_of(state.rows["s0"], more, 1.0))])
    assert store.store.connection.db.total_changes - before < 30
    assert list(store.load("r").rows) == [*state.rows, "more"]
    store.close()


def test_two_processes_step_one_run_at_the_same_time(tmp_path: Path) -> None:
    first = KeptRuns(tmp_path / "runs.db")
    state = started(first, plan=Plan(subtasks=tuple(sub(f"s{n}") for n in range(120))))
    stores = [first, KeptRuns(tmp_path / "runs.db")]

    def answer_half(number: int) -> None:
        for name in running(state)[number::2]:
            stores[number].apply("r", [answer_for(state, name)])

    with ThreadPoolExecutor(2) as threads:
        list(threads.map(answer_half, range(2)))
    assert first.load("r").header.status == "done"
    for store in stores:
        store.close()


def test_the_outbox_is_in_the_order_of_the_decisions_whatever_the_ids_are() -> None:
    store = KeptRuns()
    started(store, plan=Plan(subtasks=tuple(sub(f"s{n}", priority=1 + n % 10) for n in range(200))))
    listed = store.outbox("r", limit=1000)
    priorities = [command.priority for command in listed]
    assert priorities == sorted(priorities, reverse=True)
    assert [c.id for c in listed] != sorted(c.id for c in listed)
    store.sent("r", [listed[3].id])
    assert [c.id for c in store.outbox("r", limit=3)] == [c.id for c in listed[:3]]
    store.close()


def test_timers_are_given_until_they_are_dealt_with_and_never_after() -> None:
    store = KeptRuns()
    state = started(store, plan=Plan(subtasks=(sub("a", timeout_s=5.0), sub("b", timeout_s=5.0))))
    begun = [
        Incoming(f"begun:{row.message_id}", Begun(at=1.0, version=1, subtask=name, attempt=row.attempt))
        for name, row in state.rows.items()
    ]
    store.apply("r", begun)
    assert store.due(now=5.9) == []
    due = store.due(now=6.0)
    assert store.due(now=6.0) == due
    assert len(due) == 2
    state = store.load("r")
    state, _ = store.apply("r", [answer_for(state, "b")])
    state, _ = store.apply("r", due)
    assert (state.rows["a"].status, state.rows["b"].status) == ("failed", "done")
    assert store.due(now=99.0) == []
    store.close()


def test_no_timer_is_left_of_a_subtask_whose_start_and_end_come_together() -> None:
    """It would be looked at until the run ends, and 500 of them would hide all others."""
    store = KeptRuns()
    state = started(store, plan=Plan(subtasks=(sub("a", timeout_s=5.0), sub("b", timeout_s=7.0))))
    begun = [
        Incoming(f"begun:{row.message_id}", Begun(at=1.0, version=1, subtask=name, attempt=row.attempt))
        for name, row in state.rows.items()
    ]
    store.apply("r", [begun[0], answer_for(state, "a"), begun[1]])
    [left] = store.due(now=99.0)
    assert isinstance(left.event, Timer)
    assert left.event.subtask == "b"
    store.close()


def test_a_timer_goes_off_by_the_clock_of_the_store() -> None:
    """Whose clocks are right, those of coordinators on several machines, nobody can say."""
    store = KeptRuns()
    state = started(store, plan=Plan(subtasks=(sub("a", timeout_s=5.0),)))
    row = state.rows["a"]
    store.apply("r", [Incoming("begun", Begun(at=-3_600.0, version=1, subtask="a", attempt=row.attempt))])
    assert store.due(now=5.9) == []
    assert len(store.due(now=6.0)) == 1
    store.close()


def test_two_stores_on_one_file_see_each_others_steps(tmp_path: Path) -> None:
    one, two = KeptRuns(tmp_path / "runs.db"), KeptRuns(tmp_path / "runs.db")
    state = started(one)
    for number in range(20):
        names = running(state)
        if not names:
            break
        state, _ = (one, two)[number % 2].apply("r", [answer_for(state, names[0])])
    assert one.load("r").header == two.load("r").header
    assert state.header.status == "done"
    one.close()
    two.close()


def work(store: KeptRuns, messages: dict[str, str], chance: Random) -> bool:
    """One round of a coordinator: accept it, send what must be sent, answer something. True at the end."""
    store.create(new_run("r", PLAN, ["work"]))
    listed: list[Dispatch] = store.outbox("r")
    for command in listed:
        assert messages.setdefault(command.id, command.subtask) == command.subtask  # the store of messages knows ids
    store.sent("r", [command.id for command in listed])
    state = store.load("r")
    names = [name for name in running(state) if state.rows[name].message_id in messages]
    if names:
        state, _ = store.apply("r", [answer_for(state, chance.choice(names))])
    return state.is_finished


def test_a_crash_at_any_statement_loses_nothing_and_repeats_nothing(tmp_path: Path) -> None:
    reference: dict[str, str] = {}
    store = KeptRuns(tmp_path / "reference.db")
    while not work(store, reference, Random(1)):
        pass
    store.close()
    assert sorted(reference.values()) == sorted(["find", "mine-0", "mine-1", "mine-2", *["write", "review"] * 2])

    for statements in range(1, 40, 3):
        path = tmp_path / f"{statements}.db"
        messages: dict[str, str] = {}
        store = KeptRuns(path)
        crashes = 0
        is_over = False
        while not is_over:
            store.store.dies_at(statements + crashes)
            try:
                while not is_over:
                    is_over = work(store, messages, Random(crashes))
            except Crash:
                crashes += 1
            store.close()
            store = KeptRuns(path)
        state = store.load("r")
        assert state.header.status == "done"
        assert sorted(messages.values()) == sorted(reference.values())
        assert [row.attempt for row in state.rows.values()] == [1, 2, 2, 1, 1, 1]
        assert store.outbox("r") == []
        store.close()


def test_a_run_of_newer_code_is_refused() -> None:
    store = KeptRuns()
    state = started(store)
    newer = dump(msgspec.structs.replace(state.header, schema=99)).decode()

    def write() -> Script[Sequence[Row]]:
        return (yield Query("UPDATE runs SET header = $1, seq = 99", [newer]))

    store.store.run(write)
    with pytest.raises(CoordinationError, match="newer version"):
        store.apply("r", [])
    store.close()


def test_unknown_and_doubled_runs_are_named() -> None:
    store = KeptRuns()
    with pytest.raises(CoordinationError, match="no run 'ghost'"):
        store.load("ghost")
    started(store)
    assert store.create(new_run("r", PLAN, ["work"])) is None
    store.close()


@pytest.mark.slow
def test_ten_thousand_subtasks_are_stepped_through_in_reasonable_time() -> None:
    store = KeptRuns()
    pieces = tuple(sub(f"mine-{n}") for n in range(9_998))
    state = started(store, plan=Plan(subtasks=(sub("write", "mine-*"), *pieces)))
    names = running(state)
    for start in range(0, len(names), 100):
        state, _ = store.apply("r", [answer_for(state, name) for name in names[start : start + 100]])
    assert running(state) == ["write"]
    store.close()


def test_a_state_that_is_read_while_it_changes_is_one_state() -> None:
    """Where no lock is held between the statements: the header of one state never comes with the rows of the next."""
    store = KeptRuns()
    state = started(store)
    asked = 0

    def interrupted() -> Script[RunState]:
        """The same statements, each for itself, and a step after the first."""
        nonlocal asked
        reading = run_scripts.load("r")
        statement = next(reading)
        while True:
            rows = store.store.run(partial(one, statement))
            if asked == 0:
                store.apply("r", [answer_for(state, "find")])
            asked += 1
            try:
                statement = reading.send(rows)
            except StopIteration as stop:
                found: RunState = stop.value
                return found
            yield from ()

    found = store.store.look(interrupted)
    now = store.load("r")
    assert (found.header, found.rows) == (now.header, now.rows)
    assert found.header.seq == 2
    assert asked == 6


def one(statement: Statement) -> Script[Sequence[Row]]:
    return (yield statement)
