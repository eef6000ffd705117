"""Whether a plan can be carried out here: by these capabilities, with this input, within these limits."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import msgspec

from hivewire.errors import InvalidPlan
from hivewire.rules.plan import MAX_DEPTH, MAX_SUBTASKS, Graph, Plan, Subtask, faults


class Capability(msgspec.Struct, frozen=True, kw_only=True):
    """What workers offer. `needs` are the names that the input of a subtask must have; `cost` counts against the
    budget of a plan, in whatever unit its owner likes."""

    name: str
    description: str = ""
    needs: tuple[str, ...] = ()
    cost: float = 1.0


class PlanLimits(msgspec.Struct, frozen=True, kw_only=True):
    """How large a plan may be. `max_depth` is the longest chain; `budget` bounds the sum of the costs."""

    max_subtasks: int = 50
    max_depth: int = 20
    max_bytes: int = 262_144
    budget: float | None = None


class RunLimits(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """How far a run may go. Each is a hard end: the run fails, with what is finished.

    `replans`: how often the model is asked again when subtasks have failed. `stalls`: how many plans in a row may end
    without one more subtask finished. `max_subtasks` and `max_depth` (the longest chain) bound the whole plan, with
    what handlers and new plans have added. `wall_s`: seconds from the start, unless the run has its own `timeout_s`.
    """

    replans: int = 2
    stalls: int = 3
    max_subtasks: int = MAX_SUBTASKS
    max_depth: int = MAX_DEPTH
    wall_s: float | None = None

    @property
    def of_plan(self) -> PlanLimits:
        """For a plan that no model has made: what is held to the limits of a run anyhow needs no others."""
        return PlanLimits(max_subtasks=self.max_subtasks, max_depth=self.max_depth, max_bytes=sys.maxsize)

    def check(self, subtasks: Sequence[Subtask]) -> None:
        """Raise `InvalidPlan` for a plan that has grown beyond the limits."""
        if len(subtasks) > self.max_subtasks:
            raise InvalidPlan(
                f"the run would have {len(subtasks):,} subtasks; at most {self.max_subtasks:,} are allowed"
            )
        if self.max_depth >= MAX_DEPTH:  # every plan is held to that
            return
        depth = depth_of(subtasks)
        if depth > self.max_depth:
            raise InvalidPlan(
                f"the run would have a chain of {depth:,} subtasks; at most {self.max_depth:,} are allowed"
            )


def check(plan: Plan, capabilities: Mapping[str, Capability], run_input: Mapping[str, Any], limits: PlanLimits) -> None:
    """Raise `InvalidPlan` with everything that is wrong with the plan."""
    errors = list(faults(plan.subtasks, capabilities.keys()))
    if not errors:
        errors = list(_beyond(plan.subtasks, capabilities, limits))
    errors += _missing_inputs(plan.subtasks, capabilities, run_input)
    if errors:
        raise InvalidPlan("the plan is not valid: " + "; ".join(errors[:50]), errors)


def _beyond(subtasks: Sequence[Subtask], capabilities: Mapping[str, Capability], limits: PlanLimits) -> Iterator[str]:
    if len(subtasks) > limits.max_subtasks:
        yield f"{len(subtasks):,} subtasks; at most {limits.max_subtasks:,} are allowed"
    depth = depth_of(subtasks)
    if depth > limits.max_depth:
        yield f"a chain of {depth} subtasks; at most {limits.max_depth} may wait for one another"
    size = len(msgspec.json.encode(subtasks))
    if size > limits.max_bytes:
        yield f"the plan has {size:,} bytes; at most {limits.max_bytes:,} are allowed"
    cost = sum(capabilities[subtask.assigned_to].cost for subtask in subtasks)
    if limits.budget is not None and cost > limits.budget:
        yield f"the plan costs {cost:g}; the budget is {limits.budget:g}"


def _missing_inputs(
    subtasks: Sequence[Subtask], capabilities: Mapping[str, Capability], run_input: Mapping[str, Any]
) -> list[str]:
    return [
        f'subtask "{subtask.name}": its input lacks "{name}", which {subtask.assigned_to} needs'
        for subtask in subtasks
        if (capability := capabilities.get(subtask.assigned_to)) is not None
        for name in capability.needs
        if name not in subtask.input and name not in run_input
    ]


def depth_of(subtasks: Sequence[Subtask]) -> int:
    """The length of the longest chain of a plan without cycles."""
    graph = Graph(subtasks)
    missing = {name: len(others) for name, others in graph.after.items()}
    level = [name for name, count in missing.items() if count == 0]
    depth = 0
    while level:
        depth += 1
        following = []
        for name in level:
            for dependent in graph.before[name]:
                missing[dependent] -= 1
                if missing[dependent] == 0:
                    following.append(dependent)
        level = following
    return depth
