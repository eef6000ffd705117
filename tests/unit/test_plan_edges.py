"""Plans at their limits: the last that is taken, the first that is refused, and what is said of it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import msgspec
import pytest

from hivewire.errors import InvalidPlan
from hivewire.rules.plan import MAX_DEPTH, Graph, Plan, Subtask, faults, parse_plan, read_subtasks
from hivewire.rules.plan_answer import MOST_CHARACTERS, plan_in
from hivewire.rules.plan_limits import Capability, PlanLimits, RunLimits, check, depth_of


def sub(name: str, *dependencies: str, **fields: Any) -> dict[str, Any]:
    return {"name": name, "assigned_to": "work", "dependencies": list(dependencies), **fields}


def plan_of(*subtasks: Any, **fields: Any) -> dict[str, Any]:
    return {"subtasks": list(subtasks), **fields}


def refused(source: Any, capabilities: tuple[str, ...] | None = None) -> list[str]:
    with pytest.raises(InvalidPlan) as caught:
        parse_plan(source, capabilities)
    return list(caught.value.errors)


@pytest.mark.parametrize(
    "fields",
    [
        {"priority": 1},
        {"priority": 10},
        {"timeout_s": 1},
        {"timeout_s": 0.001},
        {"timeout_s": 999_999_999.9},
        {"timeout_s": None},
        {"name": "n" * 200},
        {"name": "n"},
        {"assigned_to": "w"},
        {"dependencies": []},
        {"input": {}},
        {"description": ""},
    ],
    ids=repr,
)
def test_the_last_that_is_taken(fields: dict[str, Any]) -> None:
    (subtask,) = parse_plan(plan_of(sub("a") | fields)).subtasks
    for name, value in fields.items():
        assert getattr(subtask, name) == (tuple(value) if isinstance(value, list) else value)


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"priority": 0}, "priority must be a whole number from 1 to 10, not 0"),
        ({"priority": 11}, "not 11"),
        ({"priority": "5"}, "not '5'"),
        ({"timeout_s": 0}, "timeout_s must be a number of seconds above 0, not 0"),
        ({"timeout_s": -1}, "not -1"),
        ({"timeout_s": 1e9}, "not 1000000000.0"),
        ({"timeout_s": True}, "not True"),
        ({"timeout_s": "1"}, "not '1'"),
        ({"assigned_to": ""}, "assigned_to must be text that is not empty, not ''"),
        ({"assigned_to": 3}, "not 3"),
        ({"dependencies": [""]}, "dependencies must be a list of names or patterns"),
        ({"dependencies": [3]}, "dependencies must be a list"),
        ({"dependencies": "b"}, "dependencies must be a list"),
        ({"dependencies": {"b": 1}}, "dependencies must be a list"),
        ({"description": 3}, "description must be text, not 3"),
        ({"input": "x" * 58}, "input must be an object, not 'x"),
        ({"input": "x" * 59}, "input must be an object, not text"),
        ({"input": [0] * 60}, "not a list"),
        ({"name": " a"}, "name must be 1 to 200 printable characters"),
        ({"name": "a "}, "name must be"),
        ({"name": "n" * 201}, "name must be"),
        ({"name": None}, "subtask 1: name must be"),
    ],
    ids=repr,
)
def test_the_first_that_is_refused(fields: dict[str, Any], says: str) -> None:
    (error,) = refused(plan_of(sub("a") | fields))
    assert says in error


@pytest.mark.parametrize(
    ("source", "says"),
    [
        (None, "not null"),
        ([], "not a list"),
        ("true", "not true or false"),
        ("3.5", "not a number"),
        ('"x"', "not text"),
        (plan_of(sub("a"), name=3), "name must be text, not a number"),
        (plan_of(sub("a"), description=[]), "description must be text, not a list"),
        (plan_of(sub("a"), 4), "subtask 2 must be an object, not a number"),
    ],
    ids=repr,
)
def test_what_is_said_of_the_wrong_kind(source: Any, says: str) -> None:
    with pytest.raises(InvalidPlan) as caught:
        parse_plan(source)
    assert says in str(caught.value)


def test_capabilities_are_asked_for_only_where_they_are_known() -> None:
    assert parse_plan(plan_of(sub("a"))).subtasks[0].assigned_to == "work"
    assert refused(plan_of(sub("a")), ()) == ['subtask "a": no worker has the capability "work" (known: none)']
    assert refused(plan_of(sub("a")), ("b", "a")) == ['subtask "a": no worker has the capability "work" (known: a, b)']


def test_fifty_errors_are_shown_and_all_are_kept() -> None:
    for count in (50, 51, 60):
        with pytest.raises(InvalidPlan) as caught:
            parse_plan(plan_of(*(sub(f"s{n}", "ghost") for n in range(count))))
        assert len(caught.value.errors) == count
        assert str(caught.value).count("ghost") == 50
        assert (f"and {count - 50} more" in str(caught.value)) is (count > 50)


def test_subtasks_must_be_a_list() -> None:
    errors: list[str] = []
    assert read_subtasks("x", errors) == []
    assert errors == ["subtasks must be a list, not text"]
    too_many = [Subtask(name="a", assigned_to="work")] * 10_001
    assert list(faults(too_many)) == ["10,001 subtasks; at most 10,000 are allowed"]


def test_the_longest_chain_and_the_most_dependencies_are_taken() -> None:
    chain = [sub("s0"), *(sub(f"s{n}", f"s{n - 1}") for n in range(1, MAX_DEPTH))]
    assert len(parse_plan(plan_of(*chain)).subtasks) == 1_000
    few, many = [sub(f"a{n}") for n in range(500)], [sub(f"b{n}", "a*") for n in range(1_000)]
    graph = Graph(parse_plan(plan_of(*few, *many)).subtasks)
    assert sum(map(len, graph.after.values())) == 500_000
    assert "500,000 dependencies" in refused(plan_of(*few, *many, sub("c", "a0")))[0]


def test_a_graph_has_each_dependency_once_and_none_that_is_not_there() -> None:
    subtasks = [Subtask(name=name, assigned_to="w", dependencies=after) for name, after in (
        ("a", ()), ("b", ("a", "a", "ghost", "?")), ("c", ("b", "[ab]")),
    )]  # fmt: skip
    graph = Graph(subtasks)
    assert graph.after == {"a": (), "b": ("a", "c"), "c": ("b", "a")}
    assert graph.before == {"a": ["b", "c"], "b": ["c"], "c": ["b"]}
    assert graph.ancestors("c") == {"a", "b", "c"}  # it is on a cycle
    assert graph.descendants("a") == {"b", "c"}
    assert graph.reach("ghost", graph.after) == set()


def test_every_cycle_is_named_and_what_is_only_behind_one_is_not() -> None:
    errors = refused(
        plan_of(
            sub("b", "c"), sub("c", "b"), sub("d", "b"), sub("e", "d"),
            sub("x", "y"), sub("y", "z"), sub("z", "x"), sub("f"), sub("g", "f", "g"),
        )
    )  # fmt: skip
    assert errors == [
        'subtask "g" depends on itself',
        'a cycle: "b" → "c" → "b"',
        'a cycle: "x" → "y" → "z" → "x"',
    ]
    assert refused(plan_of(sub("g", "g"), sub("h", "g"))) == ['subtask "g" depends on itself']


def test_what_comes_behind_a_wrong_one_is_looked_at_too() -> None:
    assert len(refused(plan_of(4, sub("a") | {"priority": 0}))) == 2


def test_the_stored_form_of_a_subtask_says_only_what_is_special() -> None:
    assert msgspec.json.encode(Subtask(name="a", assigned_to="w")) == b'{"name":"a","assigned_to":"w"}'
    assert Subtask(name="a", assigned_to="w").priority == 5


# In a model's answer


def test_an_answer_is_read_up_to_its_limit() -> None:
    plan = json.dumps(plan_of(sub("a")))
    longest = plan + " " * (MOST_CHARACTERS - len(plan))
    assert len(longest) == 1_000_000
    assert plan_in(longest)["subtasks"][0]["name"] == "a"
    with pytest.raises(InvalidPlan, match="the answer has 1,000,001 characters; at most 1,000,000 are read"):
        plan_in(longest + " ")


def test_so_many_braces_are_tried() -> None:
    plan = json.dumps(plan_of())
    assert plan_in("{" * 1_999 + plan) == {"subtasks": []}
    with pytest.raises(InvalidPlan):
        plan_in("{" * 2_000 + plan)


def test_of_several_plans_the_last_and_nothing_beside_its_fields() -> None:
    first, second = plan_of(name="one", mood="good"), plan_of(name="two", description="d", mood="bad")
    assert plan_in(f"{json.dumps(first)} then {json.dumps(second)} {{}}") == {
        "subtasks": [], "name": "two", "description": "d",
    }  # fmt: skip
    assert plan_in(json.dumps({"subtasks": [{"subtasks": [3]}]})) == {"subtasks": [{"subtasks": [3]}]}


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        (" \n", "the answer is empty; it must be a JSON object with the field subtasks"),
        ("{}", "there is no JSON object with the field subtasks in the answer"),
        ('"subtasks"', "the JSON of the plan is not complete or not valid"),
        ('x\n{\n "subtasks": [,]}', "at line 2, column 15 (from its first brace)"),
        ('{"subtasks": ' + "[" * 200_000, ": it is nested too deeply"),
        ('{"a": 1, "b": 2, "b": 3}', 'the name "b" stands twice in one object'),
        ('{"subtasks": [], "name": "\\ud800"}', "has half a character in it"),
        ('{"subtasks": [], "\\udfff": "a"}', "has half a character in it"),
        ('{"subtasks": Infinity}', "JSON has no Infinity"),
    ],
    ids=lambda text: text[:20],
)
def test_what_is_said_of_an_answer_without_a_plan(answer: str, says: str) -> None:
    with pytest.raises(InvalidPlan) as caught:
        plan_in(answer)
    assert says in str(caught.value)


def test_where_it_breaks_is_told_only_if_it_is_known() -> None:
    for answer in ('"subtasks"', '"subtasks" {"a": 1}'):
        with pytest.raises(InvalidPlan, match=r"not complete or not valid$"):
            plan_in(answer)
    with pytest.raises(InvalidPlan) as caught:
        plan_in(json.dumps({"n" * 60: "\ud800"}))
    assert str(caught.value).startswith("\"'" + "n" * 50 + "'\" has half a character")


def test_what_is_at_the_edge_of_half_characters_is_whole() -> None:
    whole = plan_of(name="\ud7ff\ue000", description="\U0001f41d")
    assert plan_in(json.dumps(whole)) == whole


# Against the limits of who carries it out

CAPABILITIES = {
    "work": Capability(name="work"),
    "gold": Capability(name="gold", cost=10.0),
    "tell": Capability(name="tell", needs=("language", "tone")),
}


def said(plan: Plan, limits: PlanLimits, **run_input: Any) -> list[str]:
    try:
        check(plan, CAPABILITIES, run_input, limits)
    except InvalidPlan as error:
        return list(error.errors)
    return []


def test_the_refusal_says_it_all() -> None:
    with pytest.raises(InvalidPlan, match=r"^the plan is not valid: 2 subtasks; .*; subtask \"s1\": its input lacks"):
        check(chain_of(2, assigned_to="tell"), CAPABILITIES, {"tone": ""}, PlanLimits(max_subtasks=1))


def chain_of(count: int, **fields: Any) -> Plan:
    """In the reverse order."""
    subtasks = [sub(f"s{n}", *([f"s{n - 1}"] if n else []), **fields) for n in range(count)]
    return parse_plan(plan_of(*reversed(subtasks)))


def test_each_limit_is_taken_and_one_more_is_not() -> None:
    plan = chain_of(4)
    size = len(msgspec.json.encode(plan.subtasks))
    assert said(plan, PlanLimits(max_subtasks=4, max_depth=4, max_bytes=size, budget=4.0)) == []
    assert said(plan, PlanLimits(max_subtasks=3)) == ["4 subtasks; at most 3 are allowed"]
    assert said(plan, PlanLimits(max_depth=3)) == ["a chain of 4 subtasks; at most 3 may wait for one another"]
    assert said(plan, PlanLimits(max_bytes=size - 1)) == [f"the plan has {size} bytes; at most {size - 1} are allowed"]
    assert said(plan, PlanLimits(budget=3.5)) == ["the plan costs 4; the budget is 3.5"]
    assert said(chain_of(2, assigned_to="gold"), PlanLimits(budget=19.0)) == ["the plan costs 20; the budget is 19"]


def test_the_limits_that_hold_when_none_are_given() -> None:
    wide = parse_plan(plan_of(*(sub(f"s{n}") for n in range(50))))
    assert said(wide, PlanLimits()) == []
    assert said(parse_plan(plan_of(*(sub(f"s{n}") for n in range(51)))), PlanLimits()) != []
    assert said(chain_of(20), PlanLimits()) == []
    assert said(chain_of(21), PlanLimits()) != []
    bare = len(msgspec.json.encode(parse_plan(plan_of(sub("a", description="x"))).subtasks)) - 1
    assert said(parse_plan(plan_of(sub("a", description="x" * (262_144 - bare)))), PlanLimits()) == []
    assert said(parse_plan(plan_of(sub("a", description="x" * (262_145 - bare)))), PlanLimits()) != []


def test_fifty_errors_of_a_check_are_shown() -> None:
    plan = parse_plan(plan_of(*(sub(f"s{n}", assigned_to="tell", input={"tone": ""}) for n in range(51))))
    with pytest.raises(InvalidPlan) as caught:
        check(plan, CAPABILITIES, {}, PlanLimits(max_subtasks=60))
    assert len(caught.value.errors) == 51
    assert str(caught.value).count("language") == 50


def test_what_a_capability_needs_comes_from_the_subtask_or_from_the_run() -> None:
    plan = parse_plan(plan_of(sub("a", assigned_to="tell", input={"tone": "kind"})))
    assert said(plan, PlanLimits()) == ['subtask "a": its input lacks "language", which tell needs']
    assert said(plan, PlanLimits(), language="de") == []
    bad = parse_plan(plan_of(sub("a", assigned_to="tell"), sub("b", assigned_to="fly")))
    assert len(said(bad, PlanLimits(max_subtasks=1))) == 3  # of limits it is silent where the plan itself is wrong


def test_depth_is_that_of_the_longest_way() -> None:
    assert depth_of(()) == 0
    assert depth_of(parse_plan(plan_of(sub("a"), sub("b"))).subtasks) == 1
    assert depth_of(parse_plan(plan_of(sub("d", "a", "c"), sub("c", "b"), sub("b", "a"), sub("a"))).subtasks) == 4


# Against the limits of a run


def beyond(limits: RunLimits, subtasks: Sequence[Subtask]) -> str:
    try:
        limits.check(subtasks)
    except InvalidPlan as error:
        return str(error)
    return ""


def test_each_limit_of_a_run_is_taken_and_one_more_is_not() -> None:
    chain = chain_of(4).subtasks
    assert beyond(RunLimits(max_subtasks=4, max_depth=4), chain) == ""
    assert beyond(RunLimits(max_subtasks=3), chain) == "the run would have 4 subtasks; at most 3 are allowed"
    assert beyond(RunLimits(max_depth=3), chain) == "the run would have a chain of 4 subtasks; at most 3 are allowed"
    assert beyond(RunLimits(max_depth=1), parse_plan(plan_of(sub("a"), sub("b"))).subtasks) == ""


def test_a_run_that_says_nothing_of_limits_has_these() -> None:
    limits = RunLimits()
    assert (limits.replans, limits.stalls, limits.max_subtasks, limits.max_depth) == (2, 3, 10_000, 1_000)
    assert limits.wall_s is None
    assert msgspec.json.encode(limits) == b"{}"
