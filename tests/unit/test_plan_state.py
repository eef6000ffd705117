"""The state of a run as it begins and as it is stored, and what a handler's answer means."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from hivewire.errors import CoordinationError
from hivewire.message import BEGUN, EFFECTS, SUBTASKS
from hivewire.rules.plan import Plan, Subtask
from hivewire.rules.plan_state import (
    SCHEMA,
    Begun,
    Cancel,
    Dispatch,
    Event,
    Failed,
    Finish,
    Header,
    MakePlan,
    Planned,
    Result,
    Row,
    RunState,
    RunStatus,
    SendBack,
    SetTimer,
    Started,
    SubtaskStatus,
    Timer,
    begun_message,
    content_of,
    dump,
    event_of,
    load_command,
    load_event,
    load_header,
    load_row,
    load_state,
    marks_of,
    new_run,
)
from hivewire.rules.plan_step import step


def sub(name: str, *after: str, **fields: Any) -> Subtask:
    return Subtask(name=name, assigned_to="work", dependencies=after, **fields)


def test_a_row_begins_with_nothing_and_says_only_what_is_special() -> None:
    row = Row(spec=sub("a"))
    assert dump(row) == b'{"spec":{"name":"a","assigned_to":"work"}}'
    assert load_row(dump(row)) == row
    numbers = (row.version, row.attempt, row.timer, row.send_backs, row.resends, row.sent_at, row.ended_at)
    assert set(numbers) == {0}
    states: dict[SubtaskStatus, bool] = {"waiting": True, "running": True, "done": False, "failed": False}
    for status, is_open in states.items():
        assert Row(spec=sub("a"), status=status).is_open is is_open


def test_a_run_begins_with_nothing_done() -> None:
    state = new_run("r", Plan(name="p", subtasks=(sub("a"),)), ["work", "fly", "work"], {"size": 1}, plans_left=2)
    expected = Header(run="r", name="p", input={"size": 1}, capabilities=("fly", "work"), plans_left=2)
    assert state.header == expected
    stored = msgspec.json.decode(dump(Header(run="r")))
    said = {name: value for name, value in stored.items() if value}  # all others are empty, or 0
    assert said == {"run": "r", "status": "new", "version": 1, "schema": SCHEMA}
    assert state.is_finished is False
    ends: dict[RunStatus, bool] = {"running": False, "done": True, "failed": True, "cancelled": True}
    for status, is_finished in ends.items():
        header = Header(run="r", status=status)
        assert RunState(header, state.rows, state.graph).is_finished is is_finished


EVENTS: list[Event] = [
    Started(at=1.0),
    Begun(at=1.0, version=2, subtask="a", attempt=3),
    Result(at=1.0, version=2, subtask="a", attempt=3, output={"n": 1}, subtasks=[{}]),
    Failed(at=1.0, version=2, subtask="a", attempt=3, error="no"),
    SendBack(at=1.0, version=2, subtask="a", attempt=3, target="b", feedback="f", output=[1]),
    Timer(at=1.0, subtask="a", generation=4),
    Planned(at=1.0, command="c", subtasks=[{}], capabilities=("w",), error="e"),
    Cancel(at=1.0, reason="why"),
]


@pytest.mark.parametrize("event", EVENTS, ids=lambda event: type(event).__name__)
def test_events_come_back_as_they_were(event: Event) -> None:
    assert load_event(dump(event)) == event


@pytest.mark.parametrize(
    "command",
    [
        Dispatch(id="i", subtask="a", version=1, attempt=2, capability="w", priority=3),
        SetTimer(id="i", subtask="a", generation=1, due_at=2.0),
        MakePlan(id="i", errors=("e",)),
        Finish(id="i", status="done", reason=""),
    ],
    ids=lambda command: type(command).__name__,
)
def test_commands_come_back_as_they_were(command: Dispatch | SetTimer | MakePlan | Finish) -> None:
    assert load_command(dump(command)) == command


def test_a_state_comes_back_as_it_was_and_one_of_newer_code_does_not() -> None:
    state, _ = step(new_run("r", Plan(subtasks=(sub("a"), sub("b", "a"))), ["work"]), Started(at=3.0))
    back = load_state(dump(state.header), [dump(row) for row in state.rows.values()])
    assert (back.header, list(back.rows.items())) == (state.header, list(state.rows.items()))
    assert back.graph.after == state.graph.after
    assert load_header(dump(state.header)) == state.header
    for schema in (SCHEMA + 1, SCHEMA + 7):
        with pytest.raises(CoordinationError, match=rf"schema {schema}, this one reads up to {SCHEMA}"):
            load_header(dump(msgspec.structs.replace(state.header, schema=schema)))
    assert load_header(dump(msgspec.structs.replace(state.header, schema=SCHEMA - 1))).schema == SCHEMA - 1


RUNNING = Row(spec=sub("a"), status="running", version=2, attempt=3)
HERE: dict[str, Any] = {"at": 9.0, "version": 2, "subtask": "a", "attempt": 3}


@pytest.mark.parametrize(
    ("output", "event"),
    [
        (7, Result(**HERE, output=7)),
        (None, Result(**HERE, output=None)),
        ({"n": 1}, Result(**HERE, output={"n": 1})),
        ({"n": 1, "subtasks": [{}]}, Result(**HERE, output={"n": 1}, subtasks=[{}])),
        ({"n": 1, "send_back": None}, Result(**HERE, output={"n": 1})),
        (
            {"n": 1, "send_back": {"subtask": "b", "feedback": 3}},
            SendBack(**HERE, target="b", feedback="3", output={"n": 1}),
        ),
        ({"send_back": {"subtask": "b"}, "subtasks": []}, SendBack(**HERE, target="b", feedback="", output={})),
    ],
    ids=repr,
)
def test_what_an_answer_means(output: Any, event: Event) -> None:
    assert event_of(RUNNING, output, 9.0) == event


@pytest.mark.parametrize(
    ("output", "says"),
    [
        (b"x", "the handler returned bytes"),
        (bytearray(b"x"), "the handler returned bytes"),
        ({"send_back": {"subtask": "b"}, "subtasks": [{}]}, "both send_back and subtasks"),
        ({"send_back": "b"}, "send_back must be an object"),
        ({"send_back": {"subtask": 3}}, "send_back must be an object"),
        ({"send_back": {}}, "send_back must be an object"),
    ],
    ids=repr,
)
def test_an_answer_that_means_nothing_is_a_failure(output: Any, says: str) -> None:
    event = event_of(RUNNING, output, 9.0)
    assert isinstance(event, Failed)
    assert (event.at, event.version, event.subtask, event.attempt) == (9.0, 2, "a", 3)
    assert says in event.error


def test_what_a_message_says_to_its_worker_and_to_others() -> None:
    plan = Plan(subtasks=(sub("a"), sub("b", "a", input={"size": 2}, description="d", timeout_s=4.0)))
    state, _ = step(new_run("r", plan, ["work"], {"size": 1, "path": "p"}), Started(at=0.0))
    state, _ = step(state, event_of(state.rows["a"], {"n": 7}, 1.0))
    assert content_of(state, state.rows["b"]) == {
        "run": "r", "subtask": "b", "description": "d", "attempt": 1, "input": {"size": 2, "path": "p"},
        "outputs": {"a": {"n": 7}}, "feedback": None,
    }  # fmt: skip
    marks = {"reply_to": "box", "progress_to": "box", EFFECTS: "r/a", SUBTASKS: 2}
    assert marks_of(state, state.rows["a"], "box") == marks
    assert marks_of(state, state.rows["b"], "box") == {**marks, EFFECTS: "r/b", "start_to": "box"}


@pytest.mark.parametrize("content", [None, "begun", [], {}, {"state": "done", "message": "m"}, {"message": "m"}])
def test_what_tells_of_no_start(content: Any) -> None:
    assert begun_message(content) is None


def test_what_tells_of_a_start() -> None:
    assert begun_message({"state": BEGUN, "message": "m7"}) == "m7"
