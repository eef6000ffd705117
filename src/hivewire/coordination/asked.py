"""What is no part of a coordinator is told to who makes it. Each raises `SettingsError`."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from hivewire.codec import check_agent
from hivewire.codec.values import shown
from hivewire.errors import MessageError, SettingsError, duration_s
from hivewire.protocol import Protocol
from hivewire.rules.plan_limits import RunLimits


def check_parts(model: object, protocol: object, limits: object, name: str, lease_s: object) -> None:
    if model is not None and not callable(getattr(model, "complete", None)):
        raise SettingsError(
            f"a coordinator's model is what hivewire.llm.connect_model gives, or None, not {shown(model)}"
        )
    if not isinstance(protocol, Protocol):
        raise SettingsError(f"a coordinator's protocol is what hivewire.connect gives, not {shown(protocol)}")
    try:
        check_agent(name)
        if duration_s(lease_s, "lease_s") == 0:
            raise SettingsError("lease_s of a coordinator is above 0")
        _check_limits(limits)
    except MessageError as error:
        raise SettingsError(f"a coordinator cannot be made: {error}") from None


def _check_limits(limits: object) -> None:
    if not isinstance(limits, RunLimits):
        raise SettingsError(f"the limits of runs are a hivewire.RunLimits, not {shown(limits)}")
    for name, least in (("replans", 0), ("stalls", 0), ("max_subtasks", 1), ("max_depth", 1)):
        value = getattr(limits, name)
        if type(value) is not int or value < least:
            raise SettingsError(f"{name} of RunLimits is a whole number, at least {least}, not {shown(value)}")
    if limits.wall_s is not None:
        duration_s(limits.wall_s, "wall_s of RunLimits")


def members_of(team: object) -> list[tuple[str, Iterable[str]]]:
    """The name and the capabilities of each."""
    if isinstance(team, str) or not isinstance(team, Iterable):
        raise SettingsError(f"a team is a list of workers, not {shown(team)}")
    return [_member(each) for each in team]


def _member(each: Any) -> tuple[str, Iterable[str]]:
    try:
        name, capabilities = each if isinstance(each, tuple) else (each.name, each.capabilities)
    except (AttributeError, ValueError):
        raise SettingsError(f"in a team are workers, or tuples (name, capabilities), not {shown(each)}") from None
    return name, capabilities


def capabilities_of(name: str, capabilities: object) -> tuple[str, ...]:
    """Those of an agent that is counted as there."""
    try:
        check_agent(name)
    except MessageError as error:
        raise SettingsError(str(error)) from None
    if isinstance(capabilities, str) or not isinstance(capabilities, Iterable):
        raise SettingsError(f"the capabilities of {name} are a list of names, not {shown(capabilities)}")
    return tuple(capabilities)
