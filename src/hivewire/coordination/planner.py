"""A task becomes a plan: a model makes it, and it is checked like code before anything runs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

import msgspec

from hivewire.coordination.prompting import Prompts
from hivewire.coordination.tasks import TaskRequest, Trouble
from hivewire.errors import InvalidPlan, PlanRefused
from hivewire.llm.contract import LLM, CompletionRequest, CompletionResponse, Turn
from hivewire.rules.plan import Plan, parse_plan
from hivewire.rules.plan_answer import plan_in
from hivewire.rules.plan_limits import Capability, PlanLimits, check

_SHOWN: Final = 4_000
_MOST_FACTS: Final = 50
_MOST_OF_A_FACT: Final = 1_000

PLAN_SCHEMA: Final[dict[str, Any]] = {
    "type": "object",
    "required": ["subtasks"],
    "properties": {
        "name": {"type": "string"},
        "description": {"type": "string"},
        "facts": {"type": "array", "items": {"type": "string"}},
        "guesses": {"type": "array", "items": {"type": "string"}},
        "subtasks": {
            "type": "array",
            "minItems": 1,
            "items": {
                "type": "object",
                "required": ["name", "assigned_to"],
                "properties": {
                    "name": {"type": "string"},
                    "description": {"type": "string"},
                    "assigned_to": {"type": "string"},
                    "dependencies": {"type": "array", "items": {"type": "string"}},
                    "priority": {"type": "integer", "minimum": 1, "maximum": 10},
                    "input": {"type": "object"},
                    "timeout_s": {"type": ["number", "null"]},
                },
                "additionalProperties": False,
            },
        },
    },
}


class Planner:
    """Asks a model for plans. A plan that cannot be carried out goes back to it once, with every error.

    `temperature` and `max_tokens` are the reference's. What the model raises (`ModelError`) is handed on.
    """

    def __init__(
        self,
        llm: LLM,
        *,
        prompts: Prompts | None = None,
        limits: PlanLimits | None = None,
        temperature: float | None = 0.3,
        max_tokens: int = 2_000,
    ) -> None:
        self.limits = limits or PlanLimits()
        self._llm = llm
        self._prompts = prompts or Prompts()
        self._temperature = temperature
        self._max_tokens = max_tokens

    async def plan(
        self, request: TaskRequest, capabilities: Iterable[Capability | str], trouble: Trouble | None = None
    ) -> Plan:
        """A plan that passes `checked_plan`. Raises `PlanRefused` when the model's second one does not, either."""
        known = by_name(capabilities)
        asked = self._question(request, known, trouble)
        first = await self._ask(asked)
        try:
            return self._checked(first, request, known, trouble)
        except InvalidPlan as error:
            repair = self._repair(error, first, known)
        turns = (Turn(role="user", text=asked), Turn(role="assistant", text=first.text or "(empty)"))
        second = await self._ask(repair, turns)
        try:
            return self._checked(second, request, known, trouble)
        except InvalidPlan as error:
            raise PlanRefused(
                f'no plan for "{request.name}": the model was asked twice, and its second plan has errors, too: '
                f"{'; '.join(error.errors[:20])}. The plan: {_clipped(second.text)}",
                error.errors,
                second.text,
            ) from error

    async def _ask(self, text: str, turns: tuple[Turn, ...] = ()) -> CompletionResponse:
        return await self._llm.complete(
            CompletionRequest(
                user=text,
                turns=turns,
                temperature=self._temperature,
                max_tokens=self._max_tokens,
                schema=PLAN_SCHEMA,
            )
        )

    def _checked(
        self,
        answer: CompletionResponse,
        request: TaskRequest,
        known: Mapping[str, Capability],
        trouble: Trouble | None,
    ) -> Plan:
        if answer.finish_reason == "length":
            raise InvalidPlan(f"the answer was cut off at {self._max_tokens:,} tokens: make a plan that is shorter")
        raw = {"name": request.name, **plan_in(answer.text)}
        facts, guesses = _texts(raw.pop("facts", None)), _texts(raw.pop("guesses", None))
        finished = list(trouble.finished) if trouble is not None else []
        if finished and isinstance(raw["subtasks"], list):  # they may be named as dependencies
            some = min(known, default="")
            free = dict.fromkeys(known[some].needs) if some else {}
            raw["subtasks"] = [{"name": name, "assigned_to": some, "input": free} for name in finished] + raw[
                "subtasks"
            ]
        plan = checked_plan(raw, known.values(), request.input, self._limits_beside(finished, known))
        return msgspec.structs.replace(plan, subtasks=plan.subtasks[len(finished) :], facts=facts, guesses=guesses)

    def _question(self, request: TaskRequest, known: Mapping[str, Capability], trouble: Trouble | None) -> str:
        text = self._prompts.text(
            "plan",
            name=request.name,
            description=request.description or "(none)",
            input=_json(request.input),
            capabilities=_listed(known),
            limits=self._limits(),
        )
        if trouble is None:
            return text
        more = self._prompts.text(
            "replan",
            errors="\n".join(f"- {error}" for error in trouble.errors),
            finished="\n".join(f"- {name}: {_json(output)}" for name, output in trouble.finished.items())
            or "(nothing)",
            facts="\n".join(f"- {fact}" for fact in trouble.facts) or "(none)",
            guesses="\n".join(f"- {guess}" for guess in trouble.guesses) or "(none)",
        )
        return f"{text}\n{more}"

    def _repair(self, error: InvalidPlan, answer: CompletionResponse, known: Mapping[str, Capability]) -> str:
        return self._prompts.text(
            "repair",
            errors="\n".join(f"- {line}" for line in error.errors[:50]),
            capabilities=_listed(known),
            limits=self._limits(),
            answer=_clipped(answer.text),
        )

    def _limits_beside(self, finished: Sequence[str], known: Mapping[str, Capability]) -> PlanLimits:
        """What is finished, and stands in the plan to be depended on, takes no room from what is new."""
        limits, count = self.limits, len(finished)
        if not count:
            return limits
        return msgspec.structs.replace(
            limits,
            max_subtasks=limits.max_subtasks + count,
            max_depth=limits.max_depth + 1,
            max_bytes=limits.max_bytes + 1_000 * count,
            budget=None if limits.budget is None else limits.budget + count * known[min(known)].cost,
        )

    def _limits(self) -> str:
        limits = self.limits
        budget = f", costs of at most {limits.budget:g} in all" if limits.budget is not None else ""
        return f"at most {limits.max_subtasks} subtasks, at most {limits.max_depth} one after another{budget}."


def checked_plan(
    source: str | bytes | Mapping[str, Any],
    capabilities: Iterable[Capability | str],
    run_input: Mapping[str, Any] | None = None,
    limits: PlanLimits | None = None,
) -> Plan:
    """A plan from JSON, whoever wrote it. Raises `InvalidPlan` with every error."""
    known = by_name(capabilities)
    plan = parse_plan(source, known.keys())
    check(plan, known, run_input or {}, limits or PlanLimits())
    return plan


def plain(plan: Plan) -> dict[str, Any]:
    """A plan as it is read from JSON."""
    made: dict[str, Any] = msgspec.json.decode(msgspec.json.encode(plan))
    del made["facts"], made["guesses"]
    return made


def by_name(capabilities: Iterable[Capability | str]) -> dict[str, Capability]:
    """The capabilities by their names; a name alone needs nothing and costs 1."""
    made = [Capability(name=each) if isinstance(each, str) else each for each in capabilities]
    return {capability.name: capability for capability in made}


def _listed(known: Mapping[str, Capability]) -> str:
    return "\n".join(
        f"- {each.name}"
        + (f": {each.description}" if each.description else "")
        + (f" (its input must have: {', '.join(each.needs)})" if each.needs else "")
        + (f" (costs {each.cost:g})" if each.cost != 1.0 else "")
        for _, each in sorted(known.items())
    )


def _texts(value: Any) -> tuple[str, ...]:
    """Facts or guesses of a model: texts, some of them, none too long. What is none of that is no reason to refuse a
    plan."""
    found = value if isinstance(value, list) else []
    return tuple(text[:_MOST_OF_A_FACT] for text in found if isinstance(text, str) and text.strip())[:_MOST_FACTS]


def _json(value: Any) -> str:
    return _clipped(msgspec.json.encode(value).decode())


def _clipped(text: str) -> str:
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]} … ({len(text) - _SHOWN:,} more characters)"
