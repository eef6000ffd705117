"""One run step by step: what it counts, when it asks for a plan, and what it does about messages that vanish."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from hivewire.ids import derived_id
from hivewire.rules.plan import Plan, Subtask
from hivewire.rules.plan_limits import RunLimits
from hivewire.rules.plan_state import (
    Begun,
    Cancel,
    Command,
    Dispatch,
    Failed,
    Finish,
    MakePlan,
    Planned,
    Result,
    RunState,
    SendBack,
    SetTimer,
    Started,
    Stop,
    Timer,
    Vanished,
    new_run,
)
from hivewire.rules.plan_step import MAX_RESENDS, MAX_SEND_BACKS, step


def sub(name: str, *after: str, **fields: Any) -> Subtask:
    return Subtask(name=name, assigned_to="work", dependencies=after, **fields)


def run_of(*subtasks: Subtask, **header: Any) -> RunState:
    return new_run("r", Plan(subtasks=subtasks), ["work"], **header)


def now(state: RunState, name: str) -> dict[str, Any]:
    row = state.rows[name]
    return {"version": row.version, "subtask": name, "attempt": row.attempt}


def result(state: RunState, name: str, at: float, **fields: Any) -> Result:
    return Result(at=at, **now(state, name), **fields)


def command_id(state: RunState, index: int) -> str:
    return derived_id("run", "r", state.header.seq, index)


def raw(*names: str) -> list[dict[str, Any]]:
    return [{"name": name, "assigned_to": "work"} for name in names]


def test_a_run_in_numbers() -> None:
    state = run_of(sub("a", priority=7), sub("b", "a", timeout_s=2.0), timeout_s=60.0)
    state, commands = step(state, Started(at=10.0))
    assert commands == [
        SetTimer(id=command_id(state, 0), subtask="", generation=1, due_at=70.0),
        Dispatch(id=command_id(state, 1), subtask="a", version=1, attempt=1, capability="work", priority=7),
    ]
    header = state.header
    assert (header.status, header.seq, header.started_at, header.timers, header.timer) == ("running", 1, 10.0, 1, 1)
    row = state.rows["a"]
    assert (row.status, row.version, row.attempt, row.sent_at, row.timer) == ("running", 1, 1, 10.0, 0)
    assert row.message_id == command_id(state, 1)
    assert step(state, Started(at=11.0)) == (state, [])

    state, commands = step(state, result(state, "a", 12.0, output=[1]))
    assert [type(command) for command in commands] == [Dispatch]
    row = state.rows["a"]
    assert (row.status, row.output, row.ended_at, state.header.seq) == ("done", [1], 12.0, 2)

    state, commands = step(state, Begun(at=20.0, **now(state, "b")))
    assert commands == [SetTimer(id=command_id(state, 0), subtask="b", generation=2, due_at=22.0)]
    assert (state.rows["b"].timer, state.header.timers, state.header.timer) == (2, 2, 1)
    assert step(state, Begun(at=20.5, **now(state, "b"))) == (state, [])
    assert step(state, Timer(at=22.0, subtask="b", generation=1)) == (state, [])
    assert step(state, Timer(at=22.0, subtask="", generation=2)) == (state, [])
    assert step(state, Timer(at=22.0, subtask="ghost", generation=2)) == (state, [])

    state, commands = step(state, result(state, "b", 21.0, output=3))
    assert commands == [Finish(id=command_id(state, 0), status="done", reason="")]
    assert (state.header.status, state.header.ended_at, state.rows["b"].timer) == ("done", 21.0, 0)
    for late in (Cancel(at=22.0), Timer(at=70.0, subtask="", generation=1), Started(at=23.0)):
        assert step(state, late) == (state, [])


def test_the_time_of_a_run_ends_all_that_is_open() -> None:
    state, _ = step(run_of(sub("a"), sub("b"), sub("c", "b"), timeout_s=3.0), Started(at=0.0))
    state, _ = step(state, result(state, "a", 1.0))
    state, commands = step(state, Timer(at=3.0, subtask="", generation=1))
    why = "the run did not end within 3.0 s"
    assert commands[0] == Finish(id=command_id(state, 0), status="failed", reason=why)
    assert {name: (row.status, row.error, row.ended_at) for name, row in state.rows.items()} == {
        "a": ("done", "", 1.0), "b": ("cancelled", why, 3.0), "c": ("cancelled", why, 3.0),
    }  # fmt: skip


@pytest.mark.parametrize("changed", [{"version": 2}, {"attempt": 2}, {"subtask": "b"}, {"subtask": "ghost"}], ids=str)
def test_an_answer_to_something_else_changes_nothing(changed: dict[str, Any]) -> None:
    state, _ = step(run_of(sub("a", timeout_s=1.0), sub("b", "a"), sub("c", "a")), Started(at=0.0))
    fields = {**now(state, "a"), **changed}
    for event in (
        Result(at=1.0, **fields),
        Failed(at=1.0, **fields, error="no"),
        Begun(at=1.0, **fields),
        Vanished(at=1.0, **fields),
        SendBack(at=1.0, **fields, target="a", feedback=""),
    ):
        assert step(state, event) == (state, [])


def test_a_message_that_vanishes_is_sent_anew_three_times() -> None:
    assert MAX_RESENDS == 3
    state, _ = step(run_of(sub("a"), sub("b", "a")), Started(at=0.0))
    for number in range(1, MAX_RESENDS + 1):
        before = state.rows["a"].message_id
        state, commands = step(state, Vanished(at=float(number), **now(state, "a")))
        row = state.rows["a"]
        assert (row.resends, row.attempt, row.sent_at) == (number, number + 1, float(number))
        assert isinstance(commands[0], Dispatch)
        assert (commands[0].attempt, commands[0].id) == (number + 1, row.message_id)
        assert commands[1:] == [Stop(id=command_id(state, 1), messages=(before,))]
    state, commands = step(state, Vanished(at=9.0, **now(state, "a")))
    assert (state.rows["a"].status, state.rows["b"].status) == ("failed", "skipped")
    assert "vanished" in state.rows["a"].error
    assert isinstance(commands[0], Finish)


def test_a_subtask_is_sent_back_three_times() -> None:
    state, _ = step(run_of(sub("a"), sub("between", "a"), sub("review", "between")), Started(at=0.0))
    for number in range(1, MAX_SEND_BACKS + 2):
        for name in ("a", "between"):
            state, _ = step(state, result(state, name, 1.0, output=name))
        back = SendBack(at=2.0, **now(state, "review"), target="a", feedback=f"no {number}", output=number)
        state, commands = step(state, back)
        if number <= MAX_SEND_BACKS:
            row, between = state.rows["a"], state.rows["between"]
            assert (row.send_backs, row.attempt, row.feedback, row.ended_at) == (
                number,
                number + 1,
                f"no {number}",
                0.0,
            )
            assert (between.status, between.output, between.feedback, between.send_backs) == ("waiting", None, None, 0)
            assert [type(command) for command in commands] == [Dispatch]
    review = state.rows["review"]
    assert (review.status, review.output, review.ended_at) == ("failed", 4, 2.0)
    assert state.header.status == "failed"


def test_a_plan_grows_by_what_a_subtask_returns() -> None:
    state, _ = step(run_of(sub("a"), sub("end", "p*")), Started(at=0.0))
    assert state.rows["end"].status == "running"  # a pattern may stand for nothing
    state, _ = step(run_of(sub("a"), sub("end", "a", "p*")), Started(at=0.0))
    state, commands = step(state, result(state, "a", 1.0, subtasks=raw("p1", "p2")))
    assert [command.subtask for command in commands if isinstance(command, Dispatch)] == ["p1", "p2"]
    assert state.header.version == 2
    assert {command.version for command in commands if isinstance(command, Dispatch)} == {2}
    assert [state.rows[name].made_by for name in ("a", "p1", "p2")] == [None, "a", "a"]
    state, commands = step(state, result(state, "p1", 2.0, subtasks=[]))
    assert commands == []
    assert state.header.version == 2
    state, commands = step(state, result(state, "p2", 3.0))
    assert [command.subtask for command in commands if isinstance(command, Dispatch)] == ["end"]


# With a model that plans


def asked(commands: list[Command]) -> MakePlan:
    (command,) = commands
    assert isinstance(command, MakePlan)
    return command


def test_a_run_without_subtasks_asks_for_a_plan() -> None:
    state, commands = step(run_of(plans_left=2), Started(at=0.0))
    question = asked(commands)
    assert (question.errors, question.id) == ((), command_id(state, 0))
    assert (state.header.planning, state.header.plans_left, state.header.status) == (question.id, 1, "running")
    assert step(state, Planned(at=1.0, command="another", subtasks=raw("a"))) == (state, [])
    state, commands = step(
        state, Planned(at=1.0, command=question.id, subtasks=raw("a", "b"), capabilities=("fly", "work"))
    )
    assert [command.subtask for command in commands if isinstance(command, Dispatch)] == ["a", "b"]
    assert (state.header.version, state.header.planning, state.header.capabilities) == (2, "", ("fly", "work"))
    assert step(state, Planned(at=2.0, command=question.id, subtasks=raw("c"))) == (state, [])
    assert step(state, Planned(at=2.0, command="", subtasks=raw("c"))) == (state, [])


def test_a_run_without_subtasks_and_without_plans_is_done() -> None:
    state, commands = step(run_of(), Started(at=5.0))
    assert commands == [Finish(id=command_id(state, 0), status="done", reason="")]
    assert state.header.ended_at == 5.0


def test_a_run_that_failed_is_planned_anew_around_what_is_done() -> None:
    state, _ = step(run_of(sub("a"), sub("b"), sub("c", "b"), plans_left=1), Started(at=0.0))
    state, _ = step(state, result(state, "a", 1.0, output="kept"))
    state, commands = step(state, Failed(at=2.0, **now(state, "b"), error="no disk"))
    question = asked(commands)
    assert question.errors == ('"b" (work) failed: no disk',)
    assert state.header.plans_left == 0
    plan = [*raw("b"), {"name": "d", "assigned_to": "work", "dependencies": ["a"]}]
    state, commands = step(state, Planned(at=3.0, command=question.id, subtasks=plan))
    assert list(state.rows) == ["a", "b", "d"]
    assert (state.rows["a"].output, state.rows["b"].attempt, state.rows["d"].attempt) == ("kept", 2, 1)
    assert state.header.capabilities == ("work",)
    state, _ = step(state, result(state, "d", 4.0))
    state, commands = step(state, Failed(at=5.0, **now(state, "b"), error="again"))
    assert commands == [Finish(id=command_id(state, 0), status="failed", reason='"b" failed: again')]


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        ({"error": "no model"}, "no plan: no model"),
        ({"subtasks": [3]}, "no plan: subtask 1 must be an object"),
        ({"subtasks": [{"name": "x", "assigned_to": "fly"}]}, "no plan: "),
        ({"subtasks": [{"name": "a", "assigned_to": "work"}]}, "names_twice"),
    ],
    ids=repr,
)
def test_a_plan_that_is_none_ends_the_run(answer: dict[str, Any], says: str) -> None:
    state, _ = step(run_of(sub("a"), sub("b"), plans_left=1), Started(at=0.0))
    state, _ = step(state, result(state, "a", 1.0))
    state, commands = step(state, Failed(at=2.0, **now(state, "b"), error="bad"))
    state, commands = step(state, Planned(at=3.0, command=asked(commands).id, **answer))
    (finish,) = commands
    assert isinstance(finish, Finish)
    assert finish.status == state.header.status == "failed"
    assert (says if says != "names_twice" else '2 subtasks have the name "a"') in finish.reason
    assert finish.reason.endswith('; "b" failed: bad')
    assert state.header.ended_at == 3.0


def test_a_summary_names_three_and_counts_the_rest() -> None:
    for count in (3, 4, 5):
        state, _ = step(run_of(*(sub(f"s{n}") for n in range(count))), Started(at=0.0))
        commands: list[Command] = []
        for n in range(count):
            state, commands = step(state, Failed(at=1.0, **now(state, f"s{n}"), error="e"))
        finish = commands[-1]
        assert isinstance(finish, Finish)
        shown = [f'"s{n}" failed: e' for n in range(3)]
        assert finish.reason == "; ".join([*shown, *([f"and {count - 3} more"] if count > 3 else [])])


def test_commands_of_a_step_have_names_of_their_own() -> None:
    _state, commands = step(run_of(*(sub(f"s{n}") for n in range(9)), timeout_s=1.0), Started(at=0.0))
    assert len({command.id for command in commands}) == 10
    assert msgspec.json.encode(commands) == msgspec.json.encode(
        step(run_of(*(sub(f"s{n}") for n in range(9)), timeout_s=1.0), Started(at=0.0))[1]
    )


@pytest.mark.parametrize("after", [("open", "bad"), ("bad", "open")])
def test_what_can_never_run_is_skipped_at_once(after: tuple[str, str]) -> None:
    state, _ = step(run_of(sub("open"), sub("bad"), sub("both", *after)), Started(at=0.0))
    state, _ = step(state, Failed(at=1.0, **now(state, "bad"), error="no"))
    assert (state.rows["open"].status, state.rows["both"].status) == ("running", "skipped")
    assert state.rows["both"].error == 'its dependency "bad" failed: no'


# How far a run may go


def planned(state: RunState, commands: list[Command], *names: str, **fields: Any) -> tuple[RunState, list[Command]]:
    return step(state, Planned(at=2.0, command=asked(commands).id, subtasks=raw(*names), **fields))


def failed(state: RunState, name: str) -> tuple[RunState, list[Command]]:
    return step(state, Failed(at=3.0, **now(state, name), error="no"))


def test_a_run_ends_when_plan_after_plan_finishes_nothing() -> None:
    state, _ = step(run_of(sub("a"), plans_left=9, limits=RunLimits(stalls=1)), Started(at=0.0))
    state, commands = failed(state, "a")
    assert (state.header.stalls, state.header.finished_before) == (1, 0)
    state, _ = planned(state, commands, "b1", "b2", "c")
    for name in ("b1", "b2"):
        state, _ = step(state, result(state, name, 2.0))
    state, commands = failed(state, "c")  # but two are finished
    assert (state.header.stalls, state.header.finished_before) == (0, 2)
    state, commands = planned(state, commands, "d")
    state, commands = failed(state, "d")
    assert (state.header.stalls, state.header.finished_before) == (1, 2)
    state, commands = planned(state, commands, "e")
    state, commands = failed(state, "e")
    (finish,) = commands
    assert isinstance(finish, Finish)
    assert finish.reason == '2 plans in a row have finished nothing; "e" failed: no'
    assert (state.header.status, state.header.plans_left) == ("failed", 6)


def test_a_new_plan_beyond_the_limits_is_none() -> None:
    for limits, says in (
        (RunLimits(max_subtasks=2), "the run would have 3 subtasks"),
        (RunLimits(max_depth=1), "the run would have a chain of 2 subtasks"),
    ):
        state, commands = step(run_of(plans_left=1, limits=limits), Started(at=0.0))
        chain = [*raw("a", "b"), {"name": "c", "assigned_to": "work", "dependencies": ["a"]}]
        state, commands = step(state, Planned(at=1.0, command=asked(commands).id, subtasks=chain))
        (finish,) = commands
        assert isinstance(finish, Finish)
        assert finish.reason.startswith(f"no plan: {says}")
        assert not state.rows


def test_a_subtask_whose_result_grows_the_plan_beyond_the_limits_fails() -> None:
    state, _ = step(run_of(sub("a"), sub("b"), limits=RunLimits(max_subtasks=3)), Started(at=0.0))
    state, _ = step(state, result(state, "a", 1.0, subtasks=raw("p1")))
    assert (state.rows["a"].status, list(state.rows)) == ("done", ["a", "b", "p1"])
    state, _ = step(state, result(state, "b", 2.0, subtasks=raw("p2")))
    assert (state.rows["b"].status, list(state.rows)) == ("failed", ["a", "b", "p1"])
    assert state.rows["b"].error == ("its result was refused: the run would have 4 subtasks; at most 3 are allowed")


def test_what_a_model_knows_is_kept_until_it_says_something_else() -> None:
    state, commands = step(run_of(plans_left=4), Started(at=0.0))
    for said, kept in (
        ({"facts": ("hot",)}, (("hot",), ())),
        ({}, (("hot",), ())),
        ({"guesses": ("dry",)}, ((), ("dry",))),
        ({"facts": ("wet",), "guesses": ("red",)}, (("wet",), ("red",))),
    ):
        state, _ = planned(state, commands, "a", **said)
        assert (state.header.facts, state.header.guesses) == kept
        state, commands = failed(state, "a")


def test_what_was_skipped_for_a_subtask_that_is_gone_may_run() -> None:
    state, _ = step(
        run_of(sub("find"), sub("gate"), sub("side"), sub("review", "find"), sub("write", "gate", "p*")),
        Started(at=0.0),
    )
    state, _ = step(state, result(state, "side", 1.0, output="kept"))
    state, _ = step(state, result(state, "find", 1.0, subtasks=raw("p1")))
    state, _ = failed(state, "p1")
    assert state.rows["write"].status == "skipped"
    state, _ = step(state, SendBack(at=4.0, **now(state, "review"), target="find", feedback="", output=None))
    state, _ = step(state, result(state, "find", 5.0, subtasks=raw("p2")))
    assert (state.rows["write"].status, state.rows["write"].error) == ("waiting", "")
    assert (state.rows["side"].status, state.rows["side"].output) == ("done", "kept")
    for name in ("gate", "p2", "review", "write"):
        state, _ = step(state, result(state, name, 6.0))
    assert state.header.status == "done"
