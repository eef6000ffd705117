"""Which Python values are JSON values."""

from __future__ import annotations

from enum import Enum
from math import isfinite
from typing import Any, Final

from hivewire.errors import TooLarge, Undecodable

MAX_DEPTH: Final = 100
"""Lists and objects inside each other, in `content`, `metadata` and unknown fields, each counted alone."""
PLAIN: Final = frozenset({str, int, bool, type(None)})
"""Types whose values are all fine: the serializer itself refuses lone surrogates and endless integers."""


def shown(value: object) -> str:
    """A short `repr` for error texts; an integer may be too long to have one."""
    try:
        return f"{value!r:.80}"
    except ValueError:
        return f"a huge {type(value).__name__}"


def check_json(value: Any, most: int, levels: int = MAX_DEPTH + 1) -> int:
    """Raise unless it is a JSON value, finite, and nested no deeper than `levels` - 1.

    The serializer alone would write NaN as null, a set as a list and an int key as a str. Returns how
    many of `most` values were not used up: what holds parts of itself many times over has no end.
    """
    kind = type(value)
    if kind is dict or kind is list or isinstance(value, (dict, list, tuple)):
        return check_inside(value, most, levels - 1)
    if kind in PLAIN or (
        isfinite(value) if kind is float else isinstance(value, Enum) and isinstance(value, (str, int))
    ):
        return most
    raise Undecodable(_no_json_for(value))


def check_inside(values: Any, most: int, levels: int) -> int:
    """`check_json` for what a list, tuple or dict holds; it may be `levels` deep, itself included."""
    if levels == 0:
        raise Undecodable(f"lists and objects are nested deeper than {MAX_DEPTH} levels")
    most -= len(values)
    if most < 0:
        raise TooLarge("there are more values in it than max_message_size_bytes can hold")
    if isinstance(values, dict):
        for key in values:
            if type(key) is not str and not isinstance(key, str):
                raise Undecodable(f"the keys of an object in JSON are str; one is {shown(key)}")
        values = values.values()
    for value in values:
        kind = type(value)
        if kind in PLAIN or (kind is float and isfinite(value)):
            continue
        if kind is dict or kind is list:  # in the loop, as most are: a call less for each
            most = check_inside(value, most, levels - 1)
        else:
            most = check_json(value, most, levels)
    return most


def _no_json_for(value: object) -> str:
    if type(value) is float:
        return f"JSON has no {value}; use None or a str"
    hint = ": bytes can be the whole content, not a part of it" if isinstance(value, (bytes, bytearray)) else ""
    return f"JSON has no {type(value).__name__}; use dict, list, str, int, float, bool or None{hint}"
