"""A plan: subtasks that depend on one another. Reading and checking it, every error in words."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any, Final

import msgspec

from hivewire.errors import InvalidPlan

MAX_SUBTASKS: Final = 10_000
MAX_DEPTH: Final = 1_000
MAX_LINKS: Final = 500_000
"""Dependencies in all, patterns resolved: a bound for time and memory, far beyond a plan that makes sense."""
_MAX_NAME: Final = 200
_MAX_ERRORS_SHOWN: Final = 50
_PATTERN_CHARACTERS: Final = frozenset("*?[]")


class Subtask(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One piece of work. `assigned_to` is a capability; `dependencies` are names, or patterns such as
    `mine-*` that stand for all subtasks of the present plan version that match. `timeout_s` counts
    from the first start of its handler."""

    name: str
    assigned_to: str
    description: str = ""
    dependencies: tuple[str, ...] = ()
    priority: int = 5
    input: dict[str, Any] = {}
    timeout_s: float | None = None


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """A checked plan. Made by `parse_plan`."""

    name: str = ""
    description: str = ""
    subtasks: tuple[Subtask, ...] = ()
    facts: tuple[str, ...] = ()
    guesses: tuple[str, ...] = ()
    """What a model that made the plan holds to be so, and what it only supposes. Not read from a plan's file."""


class Graph:
    """Who waits for whom, patterns resolved. A pattern never stands for the subtask that names it."""

    __slots__ = ("after", "before")

    def __init__(self, subtasks: Sequence[Subtask]) -> None:
        names = {subtask.name: None for subtask in subtasks}
        matches: dict[str, tuple[str, ...]] = {}
        self.after: dict[str, tuple[str, ...]] = {}
        """The dependencies of each subtask that exist, without repetition."""
        self.before: dict[str, list[str]] = {name: [] for name in names}
        """The dependents of each subtask."""
        links = 0
        for subtask in subtasks:
            found: dict[str, None] = {}
            for dependency in subtask.dependencies:
                if is_pattern(dependency):
                    if dependency not in matches:
                        matches[dependency] = _matching(dependency, names)
                    found.update(dict.fromkeys(matches[dependency]))
                    found.pop(subtask.name, None)
                elif dependency in names:
                    found[dependency] = None
            links += len(found)
            if links > MAX_LINKS:
                raise InvalidPlan(f"the plan has more than {MAX_LINKS:,} dependencies")
            self.after[subtask.name] = tuple(found)
            for dependency in found:
                self.before[dependency].append(subtask.name)

    def reach(self, start: str, links: Mapping[str, Sequence[str]]) -> set[str]:
        """All that is reached from `start`, itself not included unless it is on a cycle."""
        seen: set[str] = set()
        waiting = list(links.get(start, ()))
        while waiting:
            name = waiting.pop()
            if name not in seen:
                seen.add(name)
                waiting.extend(links[name])
        return seen

    def descendants(self, name: str) -> set[str]:
        """Everything that waits for `name`, directly or through others."""
        return self.reach(name, self.before)

    def ancestors(self, name: str) -> set[str]:
        """Everything that `name` waits for, directly or through others."""
        return self.reach(name, self.after)


def is_pattern(dependency: str) -> bool:
    """Whether a dependency stands for all names that match it."""
    return not _PATTERN_CHARACTERS.isdisjoint(dependency)


def parse_plan(source: str | bytes | Mapping[str, Any], capabilities: Collection[str] | None = None) -> Plan:
    """The plan in a JSON text or in the object read from one, checked whole.

    With `capabilities`, each subtask must ask for one of them. Raises `InvalidPlan`, whose text lists
    every error.
    """
    raw = _decoded(source) if isinstance(source, (str, bytes)) else source
    if not isinstance(raw, Mapping):
        raise InvalidPlan(f"a plan is an object with the field subtasks, not {_kind(raw)}")
    unknown = sorted(map(str, raw.keys() - {"name", "description", "subtasks"}))
    errors = [f"unknown field {field!r} (known: name, description, subtasks)" for field in unknown]
    texts = {field: raw.get(field, "") for field in ("name", "description")}
    for field, text in texts.items():
        if not isinstance(text, str):
            errors.append(f"{field} must be text, not {_kind(text)}")
            texts[field] = ""
    subtasks: list[Subtask] = []
    if not isinstance(raw.get("subtasks"), list) or not raw["subtasks"]:
        errors.append("subtasks must be a list with at least one subtask")
    else:
        subtasks = read_subtasks(raw["subtasks"], errors)
    _raise_if_any(errors + list(faults(subtasks, capabilities)))
    return Plan(subtasks=tuple(subtasks), **texts)


def read_subtasks(raw: object, errors: list[str]) -> list[Subtask]:
    """The subtasks of a list as it was read from JSON; what is wrong with each is added to `errors`."""
    if not isinstance(raw, list):
        errors.append(f"subtasks must be a list, not {_kind(raw)}")
        return []
    if len(raw) > MAX_SUBTASKS:
        errors.append(f"{len(raw):,} subtasks; at most {MAX_SUBTASKS:,} are allowed")
        return []
    subtasks = []
    for number, item in enumerate(raw, 1):
        if not isinstance(item, Mapping):
            errors.append(f"subtask {number} must be an object, not {_kind(item)}")
            continue
        subtasks.append(_subtask(number, item, errors))
    return subtasks


def faults(subtasks: Sequence[Subtask], capabilities: Collection[str] | None = None) -> Iterator[str]:
    """What is wrong with these subtasks as one whole, in words."""
    if len(subtasks) > MAX_SUBTASKS:
        yield f"{len(subtasks):,} subtasks; at most {MAX_SUBTASKS:,} are allowed"
        return
    counts: dict[str, int] = {}
    for subtask in subtasks:
        counts[subtask.name] = counts.get(subtask.name, 0) + 1
    for name, count in counts.items():
        if count > 1:
            yield f'{count} subtasks have the name "{name}"'
    for subtask in subtasks:
        if capabilities is not None and subtask.assigned_to not in capabilities:
            known = ", ".join(sorted(capabilities)) or "none"
            yield f'subtask "{subtask.name}": no worker has the capability "{subtask.assigned_to}" (known: {known})'
        for dependency in dict.fromkeys(subtask.dependencies):
            if dependency == subtask.name:
                yield f'subtask "{subtask.name}" depends on itself'
            elif not is_pattern(dependency) and dependency not in counts:
                yield f'subtask "{subtask.name}" depends on "{dependency}", which is not in the plan'
    yield from _faults_of_order(subtasks)


def checked_graph(subtasks: Sequence[Subtask], capabilities: Collection[str] | None = None) -> Graph:
    """The graph of these subtasks. Raises `InvalidPlan` with everything that is wrong with them."""
    _raise_if_any(list(faults(subtasks, capabilities)))
    return Graph(subtasks)


def _faults_of_order(subtasks: Sequence[Subtask]) -> Iterator[str]:
    try:
        graph = Graph(subtasks)
    except InvalidPlan as error:
        yield str(error)
        return
    # A direct self-dependency has been named already; it is no reason to call the rest a cycle.
    after = {name: {other for other in others if other != name} for name, others in graph.after.items()}
    depth = _depths(after, graph.before)
    if max(depth.values(), default=0) > MAX_DEPTH:
        yield f"a chain of {max(depth.values()):,} subtasks; at most {MAX_DEPTH:,} may wait for one another"
    stuck = {name: after[name] for name in after if name not in depth}
    while stuck:
        cycle = _some_cycle(stuck)
        yield "a cycle: " + " → ".join(f'"{name}"' for name in [*cycle, cycle[0]])
        for name in cycle:
            del stuck[name]
        stuck = _only_on_cycles(stuck)


def _depths(after: Mapping[str, set[str]], before: Mapping[str, Sequence[str]]) -> dict[str, int]:
    """The length of the longest chain that ends at each subtask; those on or behind a cycle have none."""
    missing = {name: len(others) for name, others in after.items()}
    depth = {name: 1 for name, count in missing.items() if count == 0}
    ready = list(depth)
    reached = dict(depth)
    while ready:
        name = ready.pop()
        for dependent in before[name]:
            if dependent == name:
                continue
            reached[dependent] = max(reached.get(dependent, 0), depth[name] + 1)
            missing[dependent] -= 1
            if missing[dependent] == 0:
                depth[dependent] = reached[dependent]
                ready.append(dependent)
    return depth


def _only_on_cycles(stuck: Mapping[str, set[str]]) -> dict[str, set[str]]:
    """Without those that now wait for nothing in here: they were only behind a cycle."""
    left = {name: {other for other in others if other in stuck} for name, others in stuck.items()}
    free = [name for name, others in left.items() if not others]
    while free:
        gone = set(free)
        left = {name: others - gone for name, others in left.items() if name not in gone}
        free = [name for name, others in left.items() if not others]
    return left


def _some_cycle(stuck: Mapping[str, set[str]]) -> list[str]:
    """A cycle among subtasks each of which waits for another one in here."""
    path: dict[str, None] = {}
    name = min(stuck)
    while name not in path:
        path[name] = None
        name = min(other for other in stuck[name] if other in stuck)
    walked = list(path)
    return walked[walked.index(name) :]


def _subtask(number: int, item: Mapping[Any, Any], errors: list[str]) -> Subtask:
    name = item.get("name")
    where = f'subtask {number} "{name}"' if isinstance(name, str) else f"subtask {number}"
    known = Subtask.__struct_fields__
    unknown = sorted(map(str, item.keys() - set(known)))
    errors.extend(f"{where}: unknown field {field!r} (known: {', '.join(known)})" for field in unknown)
    if not isinstance(name, str) or not _is_name(name):
        errors.append(f"{where}: name must be 1 to {_MAX_NAME} printable characters without * ? [ ]")
    fields = {
        field: _field(f"{where}: {field}", item[field], kind, errors)
        for field, kind in _FIELDS.items()
        if field in item
    }
    if "assigned_to" not in item:
        errors.append(f"{where}: assigned_to (the capability that it needs) is missing")
    return Subtask(
        name=name if isinstance(name, str) else f"subtask {number}",
        **{"assigned_to": ""} | {field: value for field, value in fields.items() if value is not None},
    )


_FIELDS: Final = {
    "description": ("text", lambda value: isinstance(value, str)),
    "assigned_to": ("text that is not empty", lambda value: isinstance(value, str) and value != ""),
    "dependencies": (
        "a list of names or patterns",
        lambda value: isinstance(value, list) and all(isinstance(name, str) and name for name in value),
    ),
    "priority": (
        "a whole number from 1 to 10",
        lambda value: type(value) is int and 1 <= value <= 10,
    ),
    "input": ("an object", lambda value: isinstance(value, dict)),
    "timeout_s": (
        "a number of seconds above 0",
        lambda value: value is None or (type(value) in (int, float) and 0 < value < 1e9),
    ),
}


def _field(where: str, value: Any, kind: tuple[str, Any], errors: list[str]) -> Any:
    wanted, accepts = kind
    if not accepts(value):
        errors.append(f"{where} must be {wanted}, not {_shown(value)}")
        return None
    return tuple(value) if isinstance(value, list) else value


def _matching(pattern: str, names: Mapping[str, None]) -> tuple[str, ...]:
    matches = re.compile(fnmatch.translate(pattern)).match
    return tuple(name for name in names if matches(name))


def _is_name(name: str) -> bool:
    return 0 < len(name) <= _MAX_NAME and name.isprintable() and not is_pattern(name) and name.strip() == name


def _decoded(text: str | bytes) -> Any:
    try:
        return msgspec.json.decode(text)
    except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
        raise InvalidPlan(f"not JSON: {error}") from error


def _kind(value: object) -> str:
    names = {dict: "an object", list: "a list", str: "text", bool: "true or false", type(None): "null"}
    return names.get(type(value), "a number" if isinstance(value, (int, float)) else type(value).__name__)


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{_kind(value)}"


def _raise_if_any(errors: Sequence[str]) -> None:
    if not errors:
        return
    shown = list(errors[:_MAX_ERRORS_SHOWN])
    if len(errors) > len(shown):
        shown.append(f"and {len(errors) - len(shown)} more")
    raise InvalidPlan("the plan is not valid: " + "; ".join(shown), errors)
