"""One value, from whatever a source gives, to what the setting is; or the reason why not."""

from __future__ import annotations

from math import isfinite
from types import NoneType, UnionType
from typing import Any, Final, Literal, get_args, get_origin

from hivewire.durations import format_duration, parse_duration
from hivewire.settings.schema import Secret, Setting

_BOOLS: Final = {
    "true": True,
    "1": True,
    "yes": True,
    "on": True,
    "false": False,
    "0": False,
    "no": False,
    "off": False,
}

EXAMPLES: Final = " such as 500ms, 10s, 1h30m or a number of seconds"


def parse_value(setting: Setting, value: Any) -> Any:
    """The value as the setting holds it. `ValueError` when it is not accepted."""
    kind, optional = kind_of(setting)
    if value is None and optional:
        return None
    if get_origin(kind) is Literal:
        return _choice(kind, value)
    if kind is bool:
        return _bool(value)
    if kind is int:
        return _within(setting, _int(value))
    if kind is float:
        return _within(setting, _seconds(value))
    if kind is Secret:
        return value if isinstance(value, Secret) else Secret(_text(value))
    if kind is str:
        return _line(value)
    return _texts(value)


def accepted(setting: Setting) -> str:
    """The accepted values, in words."""
    kind, _ = kind_of(setting)
    if get_origin(kind) is Literal:
        return " or ".join(get_args(kind)) if len(get_args(kind)) < 3 else ", ".join(get_args(kind))
    if kind is bool:
        return "true or false"
    if kind is int:
        return f"a whole number{_limits(setting, '{:.0f}'.format)}"
    if kind is float:
        return f"a duration{EXAMPLES}{_limits(setting, format_duration)}"
    if kind is str:
        return "a line of text that is not empty"
    if kind is Secret:
        return "a text that is not empty"
    return "a list, or one text with commas"


def kind_of(setting: Setting) -> tuple[Any, bool]:
    """The type without None, and whether None is accepted."""
    if isinstance(setting.type, UnionType):
        kinds = [kind for kind in get_args(setting.type) if kind is not NoneType]
        return kinds[0], True
    return setting.type, False


def _limits(setting: Setting, show: Any) -> str:
    least, most = setting.about.least, setting.about.most
    if most is not None and least is not None:
        return f", from {show(least)} to {show(most)}"
    return f", at least {show(least)}" if least is not None else ""


def _within(setting: Setting, value: Any) -> Any:
    least, most = setting.about.least, setting.about.most
    if (least is not None and value < least) or (most is not None and value > most):
        raise ValueError("out of range")
    return value


def _choice(kind: Any, value: Any) -> str:
    choices: dict[str, str] = {choice.lower(): choice for choice in get_args(kind)}
    text = str(value).lower()
    if text not in choices:
        text = {"-1": "all", "0": "false", "no": "false"}.get(text, text)
    if text not in choices:
        raise ValueError("not one of them")
    return choices[text]


def _bool(value: Any) -> bool:
    if isinstance(value, bool):
        return value
    if isinstance(value, str) and value.lower() in _BOOLS:
        return _BOOLS[value.lower()]
    raise ValueError("not true or false")


def _int(value: Any) -> int:
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    if isinstance(value, str) and len(value) < 30:
        return int(value)
    raise ValueError("not a whole number")


def _seconds(value: Any) -> float:
    if isinstance(value, (int, float)) and not isinstance(value, bool) and isfinite(value):
        return float(value)
    if isinstance(value, str):
        return parse_duration(value)
    raise ValueError("not a duration")


def _text(value: Any) -> str:
    if not isinstance(value, str) or not value:
        raise ValueError("not a text")
    return value


def _line(value: Any) -> str:
    text = _text(value)
    if any(ord(character) < 32 or character == "\x7f" for character in text):
        raise ValueError("a control character")
    return text


def _texts(value: Any) -> tuple[str, ...]:
    parts = value.split(",") if isinstance(value, str) else value
    if not isinstance(parts, (list, tuple)):
        raise ValueError("not a list")
    texts = tuple(_line(part).strip() for part in parts)
    if not texts or not all(texts):
        raise ValueError("an empty part")
    return texts
