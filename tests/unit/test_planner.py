"""What a model answers becomes a plan that can be carried out, or a refusal that says why."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hivewire.coordination.planner import Planner, checked_plan
from hivewire.coordination.prompting import Prompts
from hivewire.coordination.tasks import TaskRequest, Trouble
from hivewire.errors import InvalidPlan, ModelUnavailable, PlanRefused, SettingsError
from hivewire.llm.contract import CompletionResponse
from hivewire.rules.plan_answer import plan_in
from hivewire.rules.plan_limits import Capability, PlanLimits
from hivewire.testing.scripted_model import Answer, ScriptedModel

CAPABILITIES = (
    Capability(name="research", description="finds things out"),
    Capability(name="write", description="writes texts", needs=("language",)),
    Capability(name="gold", cost=100),
)
LIMITS = PlanLimits(max_subtasks=6, max_depth=4, max_bytes=4_000, budget=150)
REQUEST = TaskRequest(name="report", description="about bees", input={"language": "en"})


def subtask(name: str, *dependencies: str, assigned_to: str = "research", **fields: Any) -> dict[str, Any]:
    return {"name": name, "assigned_to": assigned_to, "dependencies": list(dependencies), **fields}


def plan_of(*subtasks: Any, **fields: Any) -> str:
    return json.dumps({"subtasks": list(subtasks), **fields})


GOOD = plan_of(subtask("find"), subtask("tell", "find", assigned_to="write"))
DIAMOND = plan_of(subtask("d", "b", "c"), subtask("b", "a"), subtask("c", "a"), subtask("a"))

VALID: dict[str, str] = {
    "plain": GOOD,
    "in a fence": f"```json\n{GOOD}\n```",
    "in a fence without a language": f"```\n{GOOD}\n```",
    "amid prose": f"Sure, here is a plan:\n{GOOD}\nGood luck!",
    "prose with braces": f'I use {{braces}} and {{"a": 1}} freely. {GOOD} Use {{it}} well.',
    "braces in strings": plan_of(subtask("find"), subtask("tell }} { ```", "find", description='}{ "quoted" \\ }')),
    "a draft, then the plan": f"Draft: {plan_of(subtask('bad', 'ghost'))} No, better: {GOOD}",
    "thoughts beside the plan": plan_of(subtask("find"), thoughts="let me think", confidence=0.9),
    "not listed in order": DIAMOND,
    "indented, with Windows line ends": json.dumps(json.loads(GOOD), indent=4).replace("\n", "\r\n"),
    "other scripts": plan_of(subtask("найти 🐝", description="蜜蜂 \u2028")),
    "input of its own": plan_of(subtask("tell", assigned_to="write", input={"language": "de"})),
    "as large as allowed": plan_of(*(subtask(f"s{n}") for n in range(6))),
    "as deep as allowed": plan_of(*(subtask(f"s{n}", *([f"s{n - 1}"] if n else [])) for n in range(4))),
    "as dear as allowed": plan_of(subtask("a", assigned_to="gold"), *(subtask(f"s{n}") for n in range(5))),
    "a pattern": plan_of(subtask("find-1"), subtask("find-2"), subtask("tell", "find-*")),
}

BROKEN: dict[str, tuple[str, str]] = {
    "empty": ("", "the answer is empty"),
    "prose alone": ("I am sorry, I cannot do that.", "there is no JSON object with the field subtasks"),
    "another object": ('{"steps": []}', "there is no JSON object with the field subtasks"),
    "a list": (json.dumps([subtask("a")]), "there is no JSON object with the field subtasks"),
    "cut off": (GOOD[:-20], "the JSON of the plan is not complete"),
    "a comma too many": (GOOD.replace("]}", "],}"), "the JSON of the plan is not complete or not valid"),
    "single quotes": (GOOD.replace('"', "'"), "there is no JSON object"),
    "no subtasks": (plan_of(), "at least one subtask"),
    "subtasks is no list": ('{"subtasks": {"name": "a"}}', "subtasks must be a list"),
    "a subtask is no object": (plan_of("find"), "subtask 1 must be an object"),
    "no name": (plan_of({"assigned_to": "research"}), "name must be"),
    "a name of spaces": (plan_of(subtask("  ")), "name must be"),
    "no capability named": (plan_of({"name": "a"}), "assigned_to (the capability that it needs) is missing"),
    "an unknown field": (plan_of(subtask("a", depends_on=["b"])), "unknown field 'depends_on'"),
    "a field twice": ('{"subtasks": [{"name": "a", "name": "b"}]}', 'the name "name" stands twice'),
    "a number as text": (plan_of(subtask("a", priority="high")), "priority must be a whole number from 1 to 10"),
    "a priority beyond": (plan_of(subtask("a", priority=11)), "priority must be a whole number from 1 to 10"),
    "NaN": (GOOD.replace('"find"', "NaN", 1), "NaN"),
    "dependencies as text": (plan_of({**subtask("a"), "dependencies": "b"}), "dependencies must be a list"),
    "input as text": (plan_of(subtask("a", input="bees")), "input must be an object"),
    "names twice": (plan_of(subtask("a"), subtask("a")), '2 subtasks have the name "a"'),
    "a dependency that is not there": (plan_of(subtask("a", "ghost")), 'depends on "ghost", which is not in the plan'),
    "itself as a dependency": (plan_of(subtask("a", "a")), '"a" depends on itself'),
    "a cycle": (plan_of(subtask("a", "c"), subtask("b", "a"), subtask("c", "b")), 'a cycle: "a"'),
    "an unknown capability": (plan_of(subtask("a", assigned_to="magic")), 'no worker has the capability "magic"'),
    "too many": (plan_of(*(subtask(f"s{n}") for n in range(7))), "7 subtasks; at most 6"),
    "too deep": (
        plan_of(*(subtask(f"s{n}", *([f"s{n - 1}"] if n else [])) for n in range(5))),
        "a chain of 5 subtasks; at most 4",
    ),
    "too large": (plan_of(subtask("a", description="x" * 5_000)), "bytes; at most 4,000"),
    "too dear": (plan_of(subtask("a", assigned_to="gold"), subtask("b", assigned_to="gold")), "the budget is 150"),
    "nested without end": ('{"subtasks": ' + "[" * 100_000, "not complete or not valid"),
    "half a character": (plan_of(subtask("a", description="\ud800")), "half a character"),
}


def test_there_are_forty_variants_and_more() -> None:
    assert len(VALID) + len(BROKEN) >= 40


def planner(*answers: Answer) -> tuple[Planner, ScriptedModel]:
    model = ScriptedModel(list(answers))
    return Planner(model, limits=LIMITS), model


@pytest.mark.parametrize("variant", VALID)
async def test_a_valid_answer_is_a_plan_at_once(variant: str) -> None:
    made, model = planner(VALID[variant])
    plan = await made.plan(REQUEST, CAPABILITIES)
    assert plan.subtasks
    assert plan.name == "report"
    assert len(model.requests) == 1


@pytest.mark.parametrize("variant", BROKEN)
async def test_a_broken_answer_is_mended_once(variant: str) -> None:
    """The model is told each error, the capabilities and what it said; its second answer counts."""
    answer, said = BROKEN[variant]
    made, model = planner(answer, GOOD)
    plan = await made.plan(REQUEST, CAPABILITIES)
    assert [each.name for each in plan.subtasks] == ["find", "tell"]
    first, second = model.requests
    assert said in second.user
    assert "- research: finds things out" in second.user
    assert "its input must have: language" in second.user
    assert [turn.role for turn in second.turns] == ["user", "assistant"]
    assert second.turns[0].text == first.user


@pytest.mark.parametrize("variant", BROKEN)
async def test_two_broken_answers_are_refused_and_shown(variant: str) -> None:
    answer, said = BROKEN[variant]
    made, model = planner(GOOD[:-20], answer)
    with pytest.raises(PlanRefused) as refused:
        await made.plan(REQUEST, CAPABILITIES)
    assert any(said in error for error in refused.value.errors)
    assert said in str(refused.value)
    assert refused.value.answer == answer
    assert answer[:1_000] in str(refused.value)
    assert model.left == 0


async def test_an_input_that_is_missing() -> None:
    made, model = planner(GOOD, GOOD)
    with pytest.raises(PlanRefused, match='subtask "tell": its input lacks "language", which write needs'):
        await made.plan(TaskRequest(name="report"), CAPABILITIES)
    assert len(model.requests) == 2


async def test_every_error_is_told_at_once() -> None:
    broken = plan_of(subtask("a", "ghost", assigned_to="magic", priority=0), subtask("a", assigned_to="write"))
    made, model = planner(broken, GOOD)
    await made.plan(TaskRequest(name="r", input={"language": "en"}), CAPABILITIES)
    for said in ("ghost", "magic", "priority", "2 subtasks have the name"):
        assert said in model.requests[1].user


async def test_an_answer_that_was_cut_off_is_told_so() -> None:
    cut = CompletionResponse(text=GOOD, finish_reason="length")
    made, model = planner(cut, GOOD)
    await made.plan(REQUEST, CAPABILITIES)
    assert "cut off at 2,000 tokens" in model.requests[1].user


async def test_what_the_model_raises_is_handed_on() -> None:
    made, _ = planner(ModelUnavailable("overloaded"))
    with pytest.raises(ModelUnavailable):
        await made.plan(REQUEST, CAPABILITIES)


async def test_the_request_has_the_reference_s_figures_and_a_schema() -> None:
    made, model = planner(GOOD)
    await made.plan(REQUEST, CAPABILITIES)
    (asked,) = model.requests
    assert (asked.temperature, asked.max_tokens) == (0.3, 2_000)
    assert asked.schema is not None
    for said in ("report", "about bees", '{"language":"en"}', "gold (costs 100)", "at most 6 subtasks"):
        assert said in asked.user


async def test_replanning_names_the_error_and_what_is_finished() -> None:
    """Defect 17: the same prompt was sent again, without either."""
    made, model = planner(GOOD, plan_of(subtask("tell", "find", assigned_to="write")))
    await made.plan(REQUEST, CAPABILITIES)
    trouble = Trouble(errors=("tell failed: no ink",), finished={"find": {"bees": 3}}, facts=("bees are many",))
    again = await made.plan(REQUEST, CAPABILITIES, trouble)
    assert [(each.name, each.dependencies) for each in again.subtasks] == [("tell", ("find",))]
    first, second = (request.user for request in model.requests)
    assert first != second
    for said in ("tell failed: no ink", '- find: {"bees":3}', "bees are many"):
        assert said in second
        assert said not in first


async def test_a_task_cannot_fill_in_places_of_the_prompt() -> None:
    made, model = planner(GOOD)
    await made.plan(
        TaskRequest(name="$capabilities", description="$$ ${limits} ${nothing}", input={"language": 1}), CAPABILITIES
    )
    assert "Name: $capabilities" in model.requests[0].user
    assert "$$ ${limits} ${nothing}" in model.requests[0].user


@pytest.mark.parametrize("variant", VALID)
def test_plans_of_people_pass_the_same_check(variant: str) -> None:
    raw = plan_in(VALID[variant])
    assert checked_plan(raw, CAPABILITIES, REQUEST.input, LIMITS).subtasks


@pytest.mark.parametrize(
    "variant", [name for name in BROKEN if name not in ("a list", "half a character", "a field twice")]
)
def test_plans_of_people_fail_the_same_check(variant: str) -> None:
    with pytest.raises(InvalidPlan):
        checked_plan(BROKEN[variant][0], CAPABILITIES, REQUEST.input, LIMITS)


@given(st.text(), st.text(), st.text(alphabet='{}[]"\\,:` \n'))
def test_a_plan_is_found_whatever_stands_around_it(before: str, after: str, noise: str) -> None:
    inside = {"subtasks": [{"name": noise + after, "assigned_to": before}]}
    text = before.replace('"subtasks"', "") + "\n" + json.dumps(inside) + "\n" + after.replace('"subtasks"', "")
    if '"' in before or "{" in before:
        return  # the text before may have opened an object or a string of its own
    try:
        assert plan_in(text) == inside
    except InvalidPlan as error:
        assert "half a character" in str(error)  # noqa: PT017 -- surrogates of the generator


@given(st.text(alphabet='{}[]"subtasks:, \n`\\'))
def test_no_text_is_too_odd(text: str) -> None:
    with suppress(InvalidPlan):
        assert "subtasks" in plan_in(text)


def test_a_text_of_braces_is_read_in_time() -> None:
    with pytest.raises(InvalidPlan):
        plan_in("{" * 900_000)
    with pytest.raises(InvalidPlan):
        plan_in('{"a":' * 180_000)


def test_prompts_are_files_that_can_be_replaced(tmp_path: Path) -> None:
    (tmp_path / "plan.md").write_text("Plan $name for $$5 with $capabilities", "utf-8")
    prompts = Prompts(tmp_path)
    values = {"description": "", "input": "", "limits": ""}
    assert prompts.text("plan", name="x", capabilities="y", **values) == "Plan x for $5 with y"
    assert "mended" in prompts.text("repair", errors="", capabilities="", limits="", answer="")


@pytest.mark.parametrize(
    ("text", "said"), [("$nonsense", "nobody fills in"), ("5 $ each", "no place"), (b"\xff", "cannot be read")]
)
def test_a_prompt_that_is_wrong_is_refused_by_name(tmp_path: Path, text: str | bytes, said: str) -> None:
    (tmp_path / "repair.md").write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(SettingsError, match=rf"repair\.md.*{said}"):
        Prompts(tmp_path)
    with pytest.raises(SettingsError, match="not there"):
        Prompts(tmp_path / "nowhere")
