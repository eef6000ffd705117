"""The plan inside a model's answer, whatever stands around it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

from hivewire.errors import InvalidPlan

MOST_CHARACTERS: Final = 1_000_000
_MOST_TRIES: Final = 2_000
_FIELDS: Final = ("name", "description", "subtasks", "facts", "guesses")


def plan_in(answer: str) -> dict[str, Any]:
    """The object with `subtasks` in a text: alone, in a fence, or amid prose. Of several the last one, which is what
    a model means that thinks aloud.

    Raises `InvalidPlan` when there is none, or when a name stands twice in one object.

    >>> plan_in('Sure! ```json\\n{"subtasks": [{"name": "a }"}]}\\n``` Good luck.')
    {'subtasks': [{'name': 'a }'}]}
    """
    if len(answer) > MOST_CHARACTERS:
        raise InvalidPlan(f"the answer has {len(answer):,} characters; at most {MOST_CHARACTERS:,} are read")
    found = None
    for value in _objects(answer):
        if "subtasks" in value:
            found = value
    if found is None:
        raise InvalidPlan(_what_instead(answer))
    return {name: value for name, value in found.items() if name in _FIELDS}  # models like to add their thoughts


def _objects(text: str) -> Iterator[dict[str, Any]]:
    """The JSON objects in a text that are not inside one another, in their order."""
    import json  # not at the top: it is of use to planners alone, and part of the cost of `import hivewire`

    decoder = json.JSONDecoder(object_pairs_hook=_pairs, parse_constant=_refuse)
    place = text.find("{")
    for _ in range(_MOST_TRIES):
        if place < 0:
            return
        try:
            value, end = decoder.raw_decode(text, place)
        except (ValueError, RecursionError):
            end = place + 1  # a brace of the prose, or the beginning of something that is cut off
        else:
            yield value
        place = text.find("{", end)


def _pairs(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise InvalidPlan(f'the name "{twice}" stands twice in one object')
    for name, value in pairs:
        if isinstance(value, str) and any("\ud800" <= character <= "\udfff" for character in (*name, *value)):
            raise InvalidPlan(f'"{name[:50]!a}" has half a character in it')
    return made


def _refuse(name: str) -> None:
    raise InvalidPlan(f"JSON has no {name}")


def _what_instead(answer: str) -> str:
    text = answer.strip()
    if not text:
        return "the answer is empty; it must be a JSON object with the field subtasks"
    if '"subtasks"' in text:
        return f"the JSON of the plan is not complete or not valid{_where(text)}"
    return "there is no JSON object with the field subtasks in the answer"


def _where(text: str) -> str:
    import json

    start = text.find("{")
    if start < 0:
        return ""
    try:
        json.loads(text[start:])
    except json.JSONDecodeError as error:
        return f": {error.msg} at line {error.lineno}, column {error.colno} (from its first brace)"
    except RecursionError:
        return ": it is nested too deeply"
    return ""
