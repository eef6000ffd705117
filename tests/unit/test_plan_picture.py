"""A plan as a tree and as Mermaid."""

from __future__ import annotations

import re

from hypothesis import given
from hypothesis import strategies as st

from hivewire.rules.plan import Plan, Subtask
from hivewire.rules.plan_limits import depth_of
from hivewire.rules.plan_picture import mermaid, tree


def made(*edges: tuple[str, tuple[str, ...]]) -> Plan:
    subtasks = tuple(Subtask(name=name, assigned_to="work", dependencies=before) for name, before in edges)
    return Plan(name="picture", subtasks=subtasks)


DIAMOND = made(("d", ("b", "c")), ("b", ("a",)), ("c", ("b",)), ("a", ()), ("e", ()))


def test_the_tree_puts_each_under_the_last_that_it_waits_for() -> None:
    assert tree(DIAMOND) == [
        "picture",
        "├─ a  [work, priority 5]",
        "│  └─ b  [work, priority 5]",
        "│     └─ c  [work, priority 5]",
        "│        └─ d  [work, priority 5]  (also after b)",
        "└─ e  [work, priority 5]",
    ]


def test_mermaid_has_every_subtask_and_every_arrow() -> None:
    lines = mermaid(DIAMOND)
    assert lines[0] == "flowchart TD"
    assert lines[1] == '    s0["d<br/><i>work</i>"]'
    assert sorted(line.strip() for line in lines if "-->" in line) == [
        "s1 --> s0", "s1 --> s2", "s2 --> s0", "s3 --> s1"
    ]  # fmt: skip


@given(st.lists(st.text(min_size=1, max_size=20), unique=True, min_size=1, max_size=20))
def test_no_name_is_more_than_a_label(names: list[str]) -> None:
    plan = made(*((name, (names[n - 1],) if n and "*" not in names[n - 1] else ()) for n, name in enumerate(names)))
    for line in mermaid(plan)[1:]:
        assert re.fullmatch(r'    s\d+(\["[^"\[\]()|`;]*(#\d+;[^"\[\]()|`;]*)*<br/><i>work</i>"\]| --> s\d+)', line), (
            line
        )


@given(st.lists(st.lists(st.integers(0, 30), max_size=4), min_size=1, max_size=30))
def test_each_subtask_stands_in_the_tree_once(before: list[list[int]]) -> None:
    edges = [
        (f"t{n}", tuple(f"t{other}" for other in sorted(set(others)) if other < n)) for n, others in enumerate(before)
    ]
    plan = made(*edges)
    found = [re.search(r"(t\d+)  \[", line) for line in tree(plan)[1:]]
    assert sorted(match[1] for match in found if match) == sorted(name for name, _ in edges)
    longest: dict[str, int] = {}
    for name, others in edges:
        longest[name] = 1 + max((longest[other] for other in others), default=0)
    assert depth_of(plan.subtasks) == max(longest.values())
