"""A plan is refused with every error in words, or taken."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hivewire.errors import InvalidPlan
from hivewire.rules.plan import MAX_DEPTH, MAX_SUBTASKS, Graph, Subtask, parse_plan


def sub(name: str, *after: str, **fields: Any) -> dict[str, Any]:
    return {"name": name, "assigned_to": "work", "dependencies": list(after), **fields}


def plan_of(*subtasks: Any, **fields: Any) -> dict[str, Any]:
    return {"subtasks": list(subtasks), **fields}


def test_the_plan_of_the_reference_is_read_with_its_fields() -> None:
    text = json.dumps(
        plan_of(
            {
                "name": "write code",
                "description": "a function",
                "assigned_to": "code_generation",
                "dependencies": [],
                "priority": 9,
                "input": {"language": "python"},
            },
            sub("review", "write code"),
            name="feature",
        )
    )
    plan = parse_plan(text, ["code_generation", "work"])
    assert plan.name == "feature"
    assert plan.subtasks[0].priority == 9
    assert plan.subtasks[0].input == {"language": "python"}
    assert plan.subtasks[1].dependencies == ("write code",)


def test_a_plan_not_listed_in_order_is_taken() -> None:
    plan = parse_plan(plan_of(sub("c", "b"), sub("b", "a"), sub("a")))
    assert Graph(plan.subtasks).ancestors("c") == {"a", "b"}


BAD: list[tuple[Any, list[str]]] = [
    ("{", ["not JSON"]),
    ("[" * 100_000, ["not JSON"]),
    (b"\xff", ["not JSON"]),
    ([], ["a plan is an object"]),
    ({}, ["at least one subtask"]),
    ({"subtasks": []}, ["at least one subtask"]),
    ({"subtasks": {}}, ["at least one subtask"]),
    (plan_of(3), ["subtask 1 must be an object, not a number"]),
    (plan_of({"name": "a"}), ["assigned_to (the capability that it needs) is missing"]),
    (plan_of(sub("")), ["name must be"]),
    (plan_of(sub("mine-*")), ["without * ? [ ]"]),
    (plan_of(sub("a\n")), ["printable"]),
    (plan_of(sub("a" * 201)), ["name must be 1 to 200"]),
    (plan_of(sub("a"), sub("a"), sub("a")), ['3 subtasks have the name "a"']),
    (plan_of(sub("a", "ghost")), ['"a" depends on "ghost", which is not in the plan']),
    (plan_of(sub("a", "a")), ['"a" depends on itself']),
    (plan_of(sub("a", "b"), sub("b", "c"), sub("c", "a"), sub("d", "a")), ['a cycle: "a" → "b" → "c" → "a"']),
    (plan_of(sub("a", "b"), sub("b", "a"), sub("c", "d"), sub("d", "c")), ['"a" → "b" → "a"', '"c" → "d" → "c"']),
    (plan_of(sub("x-1", "x-*"), sub("x-2", "x-*")), ["a cycle"]),
    (plan_of(sub("a", priority=11)), ["priority must be a whole number from 1 to 10, not 11"]),
    (plan_of(sub("a", priority=True)), ["priority must be"]),
    (plan_of(sub("a", priority=5.0)), ["priority must be"]),
    (plan_of(sub("a", input=[1])), ["input must be an object"]),
    (plan_of(sub("a", timeout_s=0)), ["timeout_s must be"]),
    (plan_of(sub("a", depends_on=["b"])), ["unknown field 'depends_on'"]),
    (plan_of(sub("a"), steps=[]), ["unknown field 'steps'"]),
    (plan_of(sub("a", assigned_to="fly")), ['no worker has the capability "fly" (known: work)']),
    (
        plan_of(sub("a", "ghost", priority=0), sub("a", assigned_to="fly"), {"name": 3}),
        ["priority must be", 'depends on "ghost"', '2 subtasks have the name "a"', '"fly"', "subtask 3: name must be"],
    ),
    (plan_of(*[sub(f"s{n}") for n in range(MAX_SUBTASKS + 1)]), ["10,001 subtasks; at most 10,000"]),
    (plan_of(sub("s0"), *[sub(f"s{n}", f"s{n - 1}") for n in range(1, MAX_DEPTH + 1)]), ["a chain of 1,001 subtasks"]),
    (plan_of(*[sub(f"a{n}") for n in range(1500)], *[sub(f"b{n}", "a*") for n in range(1500)]), ["500,000 depend"]),
]


@pytest.mark.parametrize("number", range(len(BAD)))
def test_a_bad_plan_is_refused_with_all_its_errors(number: int) -> None:
    source, reasons = BAD[number]
    with pytest.raises(InvalidPlan) as caught:
        parse_plan(source, ["work"])
    for reason in reasons:
        assert reason in str(caught.value)


def test_the_largest_plan_is_checked_in_a_moment() -> None:
    pieces = [sub(f"mine-{n}", "find") for n in range(MAX_SUBTASKS - 2)]
    started = time.process_time()
    plan = parse_plan(plan_of(sub("find"), *pieces, sub("write", "mine-*")), ["work"])
    assert time.process_time() - started < 3
    assert len(Graph(plan.subtasks).after["write"]) == MAX_SUBTASKS - 2


def test_a_pattern_may_stand_for_nothing_and_never_for_itself() -> None:
    plan = parse_plan(plan_of(sub("mine-1", "mine-*"), sub("write", "none-*", "mine-[0-9]")))
    graph = Graph(plan.subtasks)
    assert graph.after == {"mine-1": (), "write": ("mine-1",)}


@given(st.lists(st.lists(st.integers(0, 7), max_size=4), min_size=1, max_size=8))
def test_a_cycle_is_found_exactly_when_there_is_one(links: list[list[int]]) -> None:
    size = len(links)
    subtasks = [sub(f"s{n}", *{f"s{m % size}" for m in after}) for n, after in enumerate(links)]
    reach = {n: {m % size for m in after} for n, after in enumerate(links)}
    for _ in range(size):  # the slow way: reach of reach, until nothing is new
        reach = {n: near | {far for m in near for far in reach[m]} for n, near in reach.items()}
    has_cycle = any(n in reach[n] for n in reach)
    if has_cycle:
        with pytest.raises(InvalidPlan, match=r"cycle|itself"):
            parse_plan(plan_of(*subtasks))
    else:
        parse_plan(plan_of(*subtasks))


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(),
        lambda s: (
            st.lists(s)
            | st.dictionaries(
                st.sampled_from(["name", "subtasks", "assigned_to", "dependencies", "priority", "input", "timeout_s"]),
                s,
            )
        ),
    )
)
def test_any_json_is_taken_or_refused_but_never_crashes(source: Any) -> None:
    try:
        plan = parse_plan(json.dumps(source))
    except InvalidPlan:
        return
    assert all(isinstance(subtask, Subtask) for subtask in plan.subtasks)
