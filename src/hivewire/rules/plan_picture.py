"""A plan for people: as a tree, and as Mermaid."""

from __future__ import annotations

from collections.abc import Sequence

from hivewire.rules.plan import Graph, Plan, Subtask


def tree(plan: Plan) -> list[str]:
    """A line for each subtask, under the one that it waits for; the others that it waits for are named."""
    graph = Graph(plan.subtasks)
    level = _levels(plan.subtasks, graph)
    under: dict[str | None, list[Subtask]] = {}
    for subtask in plan.subtasks:
        waits_for = graph.after[subtask.name]
        # Under the latest of them: the others are done by then, most likely.
        parent = max(waits_for, key=lambda name: level[name]) if waits_for else None
        under.setdefault(parent, []).append(subtask)
    lines = [plan.name or "plan"]
    waiting = [("", subtask, is_last) for subtask, is_last in _marked(under.get(None, []))]
    while waiting:  # no recursion: a plan may be a long chain
        indent, subtask, is_last = waiting.pop()
        others = [name for name in graph.after[subtask.name] if under.get(name) is None or subtask not in under[name]]
        also = f"  (also after {', '.join(others)})" if others else ""
        timeout = f", at most {subtask.timeout_s:g} s" if subtask.timeout_s is not None else ""
        lines.append(
            f"{indent}{'└─' if is_last else '├─'} {subtask.name}  [{subtask.assigned_to}, priority "
            f"{subtask.priority}{timeout}]{also}"
        )
        inner = indent + ("   " if is_last else "│  ")
        waiting += [(inner, child, last) for child, last in _marked(under.get(subtask.name, []))]
    return lines


def _marked(subtasks: Sequence[Subtask]) -> list[tuple[Subtask, bool]]:
    """Each with whether it is the last one; from the last to the first, as a stack gives them back."""
    return [(subtask, number == len(subtasks) - 1) for number, subtask in enumerate(subtasks)][::-1]


def _levels(subtasks: Sequence[Subtask], graph: Graph) -> dict[str, int]:
    missing = {name: len(others) for name, others in graph.after.items()}
    level = {name: 0 for name, count in missing.items() if count == 0}
    ready = list(level)
    for name in ready:
        for dependent in graph.before[name]:
            level[dependent] = max(level.get(dependent, 0), level[name] + 1)
            missing[dependent] -= 1
            if missing[dependent] == 0:
                ready.append(dependent)
    return level


def mermaid(plan: Plan) -> list[str]:
    """The plan as a Mermaid flow chart. Names are written so that none of them can be anything but a label."""
    graph = Graph(plan.subtasks)
    place = {subtask.name: f"s{number}" for number, subtask in enumerate(plan.subtasks)}
    lines = ["flowchart TD"]
    lines += [f'    {place[s.name]}["{_label(s.name)}<br/><i>{_label(s.assigned_to)}</i>"]' for s in plan.subtasks]
    lines += [
        f"    {place[before]} --> {place[subtask.name]}"
        for subtask in plan.subtasks
        for before in graph.after[subtask.name]
    ]
    return lines


def _label(text: str) -> str:
    return "".join(c if c.isalnum() or c in " _-.,:/" else f"#{ord(c)};" for c in text)
