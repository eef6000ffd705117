"""The plan that a model made for a task, kept beside the run: who goes on with the run goes on with its plan."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import msgspec

from hivewire.cli.options import UsageError
from hivewire.rules.plan import Plan, parse_plan

_FILE: Final = Path("hivewire") / "plan.json"


def keep_plan(out: Path, task: str, plan: Plan) -> None:
    """Write the plan into the out folder."""
    path = out / _FILE
    shown: dict[str, Any] = {"task": task, "plan": msgspec.to_builtins(plan)}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        new = path.with_suffix(".new")
        new.write_bytes(msgspec.json.format(msgspec.json.encode(shown)))
        new.replace(path)  # whole or not at all: it has been paid for
    except OSError as error:
        raise UsageError(f"the plan cannot be written to {path}: {error.strerror}") from error


def kept_plan(out: Path, task: str) -> Plan | None:
    """The plan that was made for this very task in this folder."""
    path = out / _FILE
    if not path.exists():
        return None
    try:
        kept = msgspec.json.decode(path.read_bytes())
        if kept["task"] != task:
            return None
        return parse_plan(kept["plan"])
    except (OSError, msgspec.DecodeError, KeyError, TypeError) as error:
        raise UsageError(f"the plan in {path} cannot be read ({error}); --new makes another one") from error
