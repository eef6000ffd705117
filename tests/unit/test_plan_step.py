"""The run of a plan against slow, obvious models, with doubled, stale and reordered events."""

from __future__ import annotations

from fnmatch import fnmatchcase
from random import Random
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hivewire.errors import CoordinationError
from hivewire.rules.plan import Plan, Subtask, is_pattern
from hivewire.rules.plan_state import (
    SCHEMA,
    Begun,
    Cancel,
    Command,
    Dispatch,
    Event,
    Failed,
    Finish,
    Result,
    RunState,
    SendBack,
    SetTimer,
    Started,
    Stop,
    Timer,
    content_of,
    dump,
    event_of,
    load_command,
    load_event,
    load_header,
    load_state,
    new_run,
)
from hivewire.rules.plan_step import MAX_SEND_BACKS, step


def sub(name: str, *after: str, **fields: Any) -> Subtask:
    return Subtask(name=name, assigned_to="work", dependencies=after, **fields)


def run_of(*subtasks: Subtask, **run_input: Any) -> RunState:
    return new_run("r", Plan(subtasks=subtasks), ["work"], run_input)


def begin(*subtasks: Subtask) -> tuple[RunState, list[Command]]:
    return step(run_of(*subtasks), Started(at=0.0))


def sent(commands: list[Command]) -> list[str]:
    return [command.subtask for command in commands if isinstance(command, Dispatch)]


def answer(state: RunState, name: str, output: Any = None) -> Event:
    return event_of(state.rows[name], {} if output is None else output, 1.0)


def done(state: RunState, name: str, output: Any = None) -> tuple[RunState, list[Command]]:
    return step(state, answer(state, name, output))


def statuses(state: RunState) -> dict[str, str]:
    return {name: row.status for name, row in state.rows.items()}


# What a run does, case by case.


def test_independent_subtasks_are_sent_together_the_more_urgent_first() -> None:
    _, commands = begin(sub("a"), sub("b", priority=9), sub("c", "a"))
    assert sent(commands) == ["b", "a"]


def test_outputs_go_to_dependents_by_name_and_their_own_input_goes_first() -> None:
    state, _ = step(
        run_of(sub("a"), sub("b", "a", input={"size": 2}), paths=["log"], size=1),
        Started(at=0.0),
    )
    state, commands = done(state, "a", {"lines": 7})
    assert sent(commands) == ["b"]
    content = content_of(state, state.rows["b"])
    assert content["outputs"] == {"a": {"lines": 7}}
    assert content["input"] == {"paths": ["log"], "size": 2}
    assert (content["run"], content["subtask"], content["attempt"]) == ("r", "b", 1)


def test_a_failed_subtask_skips_all_that_wait_for_it_and_the_rest_goes_on() -> None:
    state, _ = begin(sub("a"), sub("b", "a"), sub("c", "b"), sub("d"), sub("e", "d"))
    state, _ = step(state, Failed(at=1, version=1, subtask="a", attempt=1, error="no disk"))
    assert statuses(state) == {"a": "failed", "b": "skipped", "c": "skipped", "d": "running", "e": "waiting"}
    assert "no disk" in state.rows["b"].error
    state, _ = done(state, "d", {"n": 1})
    state, commands = done(state, "e")
    assert commands[-1:] == [Finish(id=commands[-1].id, status="failed", reason='"a" failed: no disk')]
    assert state.rows["d"].output == {"n": 1}


def more(*names: str, after: str = "find") -> dict[str, Any]:
    return {"subtasks": [{"name": name, "assigned_to": "work", "dependencies": [after]} for name in names]}


def test_returned_subtasks_become_the_next_version_and_patterns_take_them_in() -> None:
    state, _ = begin(sub("find"), sub("write", "find", "mine-*"))
    state, commands = done(state, "find", {"files": 2} | more("mine-1", "mine-2"))
    assert state.header.version == 2
    assert state.rows["find"].output == {"files": 2}
    assert sent(commands) == ["mine-1", "mine-2"]
    state, commands = done(state, "mine-2")
    assert sent(commands) == []
    state, commands = done(state, "mine-1")
    assert sent(commands) == ["write"]
    assert list(content_of(state, state.rows["write"])["outputs"]) == ["find", "mine-1", "mine-2"]


@pytest.mark.parametrize(
    ("returned", "reason"),
    [
        ([{"name": "find", "assigned_to": "work"}], '2 subtasks have the name "find"'),
        ([{"name": "x", "assigned_to": "fly"}], 'capability "fly"'),
        ([{"name": "x", "assigned_to": "work", "dependencies": ["ghost"]}], '"ghost", which is not in the plan'),
        ([{"name": "x", "assigned_to": "work", "dependencies": ["write"]}, {"name": "mine-1"}], "assigned_to"),
        ([{"name": "mine-x", "assigned_to": "work", "dependencies": ["write"]}], "a cycle"),
        ([{"name": "x", "assigned_to": "work"}, {"name": "x", "assigned_to": "work"}], "one name"),
        ("x", "must be a list"),
    ],
)
def test_a_bad_plan_version_fails_the_subtask_that_returned_it(returned: Any, reason: str) -> None:
    state, _ = begin(sub("find"), sub("write", "mine-*", "find"))
    state, _ = done(state, "find", {"subtasks": returned})
    assert statuses(state) == {"find": "failed", "write": "skipped"}
    assert reason in state.rows["find"].error
    assert state.header.status == "failed"


def test_a_send_back_is_a_new_attempt_with_feedback_and_dependents_run_again() -> None:
    state, _ = begin(sub("a"), sub("write", "a"), sub("side", "write"), sub("review", "write"))
    for name in ("a", "write", "side"):
        state, _ = done(state, name, {"by": name})
    back = {"send_back": {"subtask": "write", "feedback": "too short"}}
    state, commands = done(state, "review", back)
    assert sent(commands) == ["write"]
    row = state.rows["write"]
    assert (row.attempt, content_of(state, row)["feedback"]) == (2, "too short")
    assert statuses(state) == {"a": "done", "write": "running", "side": "waiting", "review": "waiting"}
    state, commands = done(state, "write")
    assert sorted(sent(commands)) == ["review", "side"]
    assert content_of(state, state.rows["review"])["feedback"] is None


def test_the_fourth_send_back_fails_the_run_with_what_it_has() -> None:
    state, _ = begin(sub("write"), sub("review", "write"))
    for _ in range(MAX_SEND_BACKS + 1):
        state, _ = done(state, "write", {"text": "draft"})
        state, _ = done(state, "review", {"send_back": {"subtask": "write", "feedback": "no"}, "seen": 1})
    assert state.header.status == "failed"
    assert state.rows["write"].attempt == 4
    assert state.rows["write"].output == {"text": "draft"}
    assert state.rows["review"].output == {"seen": 1}
    assert "more than 3 times; last feedback: no" in state.header.reason


def test_a_changed_subtask_of_the_same_name_goes_on_counting_its_attempts() -> None:
    state, _ = begin(sub("find"), sub("review", "find", "mine-*"))
    state, _ = done(state, "find", more("mine-1"))
    old = answer(state, "mine-1")
    state, _ = done(state, "mine-1", more("mine-1-a", after="mine-1"))
    state, _ = done(state, "mine-1-a")
    state, _ = done(state, "review", {"send_back": {"subtask": "find", "feedback": ""}})
    changed = more("mine-1")
    changed["subtasks"][0]["input"] = {"half": 2}
    state, commands = done(state, "find", changed)
    assert sent(commands) == ["mine-1"]
    assert state.rows["mine-1"].attempt == 2
    assert "mine-1-a" not in state.rows  # what the old one had made is gone with it
    assert step(state, old) == (state, [])


def test_a_finished_run_cannot_be_cancelled() -> None:
    state, _ = begin(sub("a"))
    state, _ = done(state, "a")
    assert step(state, Cancel(at=9)) == (state, [])


@pytest.mark.parametrize(
    ("output", "reason"),
    [
        ({"send_back": {"subtask": "side"}}, "on which it does not depend"),
        ({"send_back": {"subtask": "review"}}, "on which it does not depend"),
        ({"send_back": {"subtask": "ghost"}}, "on which it does not depend"),
        ({"send_back": "write"}, "must be an object"),
        ({"send_back": {"subtask": "write"}, "subtasks": [{}]}, "both"),
        (b"raw", "JSON value"),
    ],
)
def test_a_send_back_that_makes_no_sense_fails_the_reviewer(output: Any, reason: str) -> None:
    state, _ = begin(sub("write"), sub("side"), sub("review", "write"))
    state, _ = done(state, "write")
    state, _ = done(state, "review", output)
    assert state.rows["review"].status == "failed"
    assert reason in state.rows["review"].error


def test_what_was_sent_back_replaces_the_subtasks_it_had_returned() -> None:
    state, _ = begin(sub("find"), sub("write", "mine-*", "find"), sub("review", "write", "find"))
    state, _ = done(state, "find", more("mine-1", "mine-2"))
    for name in ("mine-1", "mine-2", "write"):
        state, _ = done(state, name)
    state, commands = done(state, "review", {"send_back": {"subtask": "find", "feedback": "forgot one"}})
    assert sent(commands) == ["find"]
    state, commands = done(state, "find", more("mine-2", "mine-3"))
    assert sorted(sent(commands)) == ["mine-2", "mine-3"]
    assert sorted(state.rows) == ["find", "mine-2", "mine-3", "review", "write"]
    assert state.rows["mine-2"].attempt == 2


def test_a_timer_fails_the_attempt_it_was_set_for_and_no_other() -> None:
    state, commands = begin(sub("a", timeout_s=5.0), sub("b", timeout_s=5.0))
    assert not any(isinstance(command, SetTimer) for command in commands)  # waiting in the queue does not count
    row = state.rows["a"]
    begun = Begun(at=7, version=row.version, subtask="a", attempt=row.attempt)
    state, commands = step(state, begun)
    (timer,) = (command for command in commands if isinstance(command, SetTimer))
    assert timer.due_at == 12.0
    assert step(state, begun) == (state, [])  # the second start, after a crash, has what is left
    same, commands = step(state, Timer(at=5, subtask="a", generation=timer.generation + 1))
    assert same is state
    assert commands == []
    state, _ = step(state, Timer(at=12, subtask="a", generation=timer.generation))
    assert state.rows["a"].error == "no result within 5.0 s of its start"
    assert state.rows["b"].status == "running"


def test_cancel_ends_the_run_and_late_results_change_nothing() -> None:
    state, _ = begin(sub("a"), sub("b", "a"))
    late = answer(state, "a")
    state, commands = step(state, Cancel(at=1, reason="asked to"))
    finish, stop = commands
    assert isinstance(finish, Finish)
    assert stop == Stop(id=stop.id, messages=())
    assert statuses(state) == {"a": "cancelled", "b": "cancelled"}
    assert step(state, late) == (state, [])


def test_a_cancel_stops_finished_work_too_for_its_message_may_come_again() -> None:
    """Nothing is with a worker as far as the run knows: one is done, another failed, and a new plan is asked for."""
    plan = Plan(subtasks=(sub("a"), sub("b")))
    state, _ = step(new_run("r", plan, ["work"], {}, plans_left=2), Started(at=0.0))
    state, _ = done(state, "a")
    row = state.rows["b"]
    state, _ = step(state, Failed(at=1, version=1, subtask="b", attempt=row.attempt, error="no"))
    assert state.header.planning
    assert stopped(step(state, Cancel(at=2, reason="asked to"))[1]) == [()]
    assert stopped(step(run_of(sub("a")), Cancel(at=0, reason="before it began"))[1]) == []


def stopped(commands: list[Command]) -> list[tuple[str, ...]]:
    return [command.messages for command in commands if isinstance(command, Stop)]


def test_what_nobody_waits_for_any_more_is_stopped_and_nothing_else() -> None:
    """A subtask whose time is over, one that waits for its dependency anew, one that is not in the plan any more."""
    state, _ = begin(sub("slow", timeout_s=5), sub("beside"))
    state, (timer,) = step(state, Begun(at=2, version=1, subtask="slow", attempt=1))
    assert isinstance(timer, SetTimer)
    message = state.rows["slow"].message_id
    state, commands = step(state, Timer(at=9, subtask="slow", generation=timer.generation))
    assert stopped(commands) == [(message,)]
    state, commands = done(state, "beside")
    assert stopped(commands) == []

    state, _ = begin(sub("a"), sub("review", "a"), sub("other", "a"))
    state, commands = done(state, "a")
    assert stopped(commands) == []
    message = state.rows["other"].message_id
    state, commands = done(state, "review", {"send_back": {"subtask": "a", "feedback": "again"}})
    assert stopped(commands) == [(message,)]

    state, _ = begin(sub("maker"), sub("checker", "maker"))
    state, _ = done(state, "maker", {"subtasks": [{"name": "p", "assigned_to": "work"}]})
    message = state.rows["p"].message_id
    state, _ = done(state, "checker", {"send_back": {"subtask": "maker", "feedback": "without p"}})
    state, commands = done(state, "maker")
    assert stopped(commands) == [(message,)]
    assert "p" not in state.rows


def test_what_was_skipped_because_of_a_subtask_that_is_not_in_the_plan_any_more_runs() -> None:
    state, _ = begin(sub("maker"), sub("checker", "maker"), sub("last", "m*", "checker"))
    made = [{"name": "m1", "assigned_to": "work"}]
    state, _ = done(state, "maker", {"subtasks": made})
    row = state.rows["m1"]
    state, _ = step(state, Failed(at=2, version=row.version, subtask="m1", attempt=1, error="bad"))
    assert state.rows["last"].status == "skipped"
    state, _ = done(state, "checker", {"send_back": {"subtask": "maker", "feedback": "without m1"}})
    state, _ = done(state, "maker")
    state, commands = done(state, "checker")
    assert sent(commands) == ["last"]
    state, _ = done(state, "last")
    assert state.header.status == "done"


def test_a_plan_that_is_refused_stops_nothing() -> None:
    state, _ = begin(sub("maker"), sub("checker", "maker"))
    state, _ = done(state, "maker", {"subtasks": [{"name": "m1", "assigned_to": "work"}]})
    state, _ = done(state, "checker", {"send_back": {"subtask": "maker", "feedback": "again"}})
    state, commands = done(state, "maker", {"subtasks": [{"name": "m2", "assigned_to": "nobody"}]})
    assert state.rows["maker"].status == "failed"
    assert state.rows["m1"].status == "running"
    assert stopped(commands) == []


def test_a_run_that_fails_by_its_time_stops_everything() -> None:
    state, (timer, _, _) = step(
        new_run("r", Plan(subtasks=(sub("a"), sub("b"))), ["work"], timeout_s=3), Started(at=0.0)
    )
    assert isinstance(timer, SetTimer)
    _, commands = step(state, Timer(at=3, subtask="", generation=timer.generation))
    assert stopped(commands) == [()]


def test_a_state_of_newer_code_is_refused() -> None:
    newer = msgspec.structs.replace(run_of(sub("a")).header, schema=SCHEMA + 1)
    with pytest.raises(CoordinationError, match="newer version"):
        load_header(dump(newer))


# Random plans, random fates.


def reloaded(state: RunState) -> RunState:
    return load_state(dump(state.header), [dump(row) for row in state.rows.values()])


def random_plan(chance: Random, size: int, **fields: Any) -> list[Subtask]:
    """Each subtask waits for some of those before it, by name or by a pattern; listed in any order."""
    subtasks = []
    for number in range(size):
        before = [f"s{n}" for n in range(number)]
        after = chance.sample(before, min(len(before), chance.randrange(4)))
        if number >= 3 and chance.random() < 0.2:
            after.append(f"s[0-{min(number - 1, 9)}]")
        subtasks.append(sub(f"s{number}", *after, priority=chance.randint(1, 10), **fields))
    chance.shuffle(subtasks)
    return subtasks


class World:
    """Workers and a network that answer at random, and what must hold at each step."""

    def __init__(self, chance: Random, subtasks: list[Subtask]) -> None:
        self.chance = chance
        self.state = run_of(*subtasks)
        self.in_flight: dict[str, Dispatch] = {}
        self.timers: list[SetTimer] = []
        self.given: list[Event] = []
        self.command_ids: set[str] = set()
        self.sendings: set[tuple[str, int]] = set()
        self.is_done: set[str] = set()
        self.finishes = 0

    def give(self, event: Event) -> None:
        event = load_event(dump(event))
        before = self.state
        again = step(reloaded(before), event)
        self.state, commands = step(before, event)
        assert (again[0].header, again[0].rows, again[1]) == (self.state.header, self.state.rows, commands)
        assert all(load_command(dump(command)) == command for command in commands)
        self.given.append(event)
        self.is_done = {name for name, row in self.state.rows.items() if row.status == "done"}
        for command in commands:
            assert command.id not in self.command_ids
            self.command_ids.add(command.id)
            self.follow(command)
        stale, none = step(self.state, event)
        assert stale is self.state, "an event was applied twice"
        assert none == []

    def follow(self, command: Command) -> None:
        if isinstance(command, Finish):
            self.finishes += 1
            assert not any(row.is_open for row in self.state.rows.values())
        elif isinstance(command, SetTimer):
            self.timers.append(command)
        elif isinstance(command, Stop):
            waited_for = {row.message_id for row in self.state.rows.values() if row.status == "running"}
            assert not waited_for.intersection(command.messages)
            assert command.messages or self.state.is_finished
        else:
            assert isinstance(command, Dispatch), "nobody has asked for a plan"
            assert (command.subtask, command.attempt) not in self.sendings, "an attempt was sent twice"
            self.sendings.add((command.subtask, command.attempt))
            for dependency in self.state.rows[command.subtask].spec.dependencies:
                names = (
                    [n for n in self.state.rows if fnmatchcase(n, dependency) and n != command.subtask]
                    if is_pattern(dependency)
                    else [dependency]
                )
                assert self.is_done.issuperset(names), f"{command.subtask} ran before {dependency}"
            self.in_flight[command.id] = command

    def noise(self) -> None:
        """Doubled, stale and forged events: none may change anything."""
        before = self.state
        kind = self.chance.randrange(3)
        if kind == 0 and self.given:
            event = self.chance.choice(self.given)
        elif kind == 1:
            name = self.chance.choice(list(self.state.rows))
            row = self.state.rows[name]
            version, attempt = self.chance.choice([(row.version + 1, row.attempt), (row.version, row.attempt + 1)])
            event = Result(at=0, version=version, subtask=name, attempt=attempt, output={"forged": True})
        else:
            event = Timer(at=0, subtask=self.chance.choice(list(self.state.rows)), generation=10**6)
        assert step(before, event) == (before, [])

    def drive(self, fate: Any, limit: int = 2000) -> RunState:
        self.give(Started(at=0.0))
        for _ in range(limit):
            if self.state.is_finished:
                break
            assert self.in_flight, "the run waits for nothing and does not end"
            if self.chance.random() < 0.3:
                self.noise()
            command = self.in_flight.pop(self.chance.choice(list(self.in_flight)))
            row = self.state.rows.get(command.subtask)
            if row is not None and row.message_id == command.id:
                self.give(fate(self, row))
            if self.chance.random() < 0.1:
                self.state = reloaded(self.state)
        assert self.state.is_finished
        assert self.finishes == 1
        for event in self.given:
            assert step(self.state, event) == (self.state, [])
        return self.state


@settings(max_examples=150, deadline=None)
@given(st.randoms(use_true_random=False), st.integers(1, 14), st.sets(st.integers(0, 13)))
def test_any_plan_ends_as_a_slow_look_at_it_says(chance: Random, size: int, bad: set[int]) -> None:
    subtasks = random_plan(chance, size)
    fails = {f"s{number}" for number in bad}

    def fate(_: World, row: Any) -> Event:
        here: dict[str, Any] = {"at": 1.0, "version": row.version, "subtask": row.spec.name, "attempt": row.attempt}
        return Failed(error="bad", **here) if row.spec.name in fails else Result(output=row.spec.name, **here)

    state = World(chance, subtasks).drive(fate)

    expected: dict[str, str] = {}
    while len(expected) < size:  # round and round, until every subtask has its fate
        for subtask in subtasks:
            after = [
                other.name
                for other in subtasks
                if other.name != subtask.name and any(fnmatchcase(other.name, d) for d in subtask.dependencies)
            ]
            if any(expected.get(name) in ("failed", "skipped") for name in after):
                expected[subtask.name] = "skipped"
            elif all(expected.get(name) == "done" for name in after):
                expected[subtask.name] = "failed" if subtask.name in fails else "done"
    assert statuses(state) == expected
    assert state.header.status == ("failed" if "failed" in expected.values() else "done")
    assert all(row.attempt == (0 if row.status == "skipped" else 1) for row in state.rows.values())


@settings(max_examples=150, deadline=None)
@given(st.randoms(use_true_random=False), st.integers(1, 10))
def test_growth_send_backs_timeouts_and_failures_in_any_order_come_to_an_end(chance: Random, size: int) -> None:
    made = 0

    def fate(world: World, row: Any) -> Event:
        nonlocal made
        here: dict[str, Any] = {"at": 1.0, "version": row.version, "subtask": row.spec.name, "attempt": row.attempt}
        roll = chance.random()
        if roll < 0.1:
            return Failed(error="bad", **here)
        if roll < 0.2 and row.timer:
            return Timer(at=9.0, subtask=row.spec.name, generation=row.timer)
        ancestors = sorted(world.state.graph.ancestors(row.spec.name))
        if roll < 0.4 and ancestors:
            return SendBack(target=chance.choice(ancestors), feedback="again", **here)
        if roll < 0.6 and made < 30:
            names = [f"m{made + n}" for n in range(chance.randrange(4))]
            made += len(names)
            after = chance.choice([[], [row.spec.name], [chance.choice(list(world.state.rows))], ["ghost"]])
            new = [{"name": name, "assigned_to": "work", "dependencies": after} for name in names]
            return Result(subtasks=new, **here)
        return Result(output=None, **here)

    subtasks = [*random_plan(chance, size, timeout_s=8.0), sub("last", "m*", "s*")]
    state = World(chance, subtasks).drive(fate)
    if all(row.status == "done" for row in state.rows.values()):
        assert state.header.status == "done"
    else:
        assert state.header.status == "failed"


@settings(max_examples=60, deadline=None)
@given(st.randoms(use_true_random=False), st.integers(1, 10))
def test_finished_work_runs_again_only_when_sent_back(chance: Random, size: int) -> None:
    allowed: dict[str, int] = {}

    def fate(world: World, row: Any) -> Event:
        here: dict[str, Any] = {"at": 1.0, "version": row.version, "subtask": row.spec.name, "attempt": row.attempt}
        ancestors = sorted(world.state.graph.ancestors(row.spec.name))
        if chance.random() < 0.3 and ancestors:
            target = chance.choice(ancestors)
            if world.state.rows[target].send_backs < MAX_SEND_BACKS:
                for name in {target} | world.state.graph.descendants(target):
                    allowed[name] = allowed.get(name, 0) + 1
            return SendBack(target=target, feedback="again", **here)
        return Result(output=None, **here)

    state = World(chance, random_plan(chance, size)).drive(fate)
    for name, row in state.rows.items():
        assert row.attempt <= 1 + allowed.get(name, 0)
