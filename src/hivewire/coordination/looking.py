"""What a coordinator tells of itself: health by component, and counts."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Final, Literal

import msgspec

if TYPE_CHECKING:
    from hivewire.coordination.ledger import Ledger
    from hivewire.coordination.ledger.runs import Runs
    from hivewire.coordination.team import Member
    from hivewire.protocol import Protocol, ProtocolMetrics
    from hivewire.rules.plan_limits import RunLimits
    from hivewire.rules.plan_state import RunState

_NEEDED: Final = ("protocol", "ledger", "coordinator")
_MOST_RUNS: Final = 10_000


class CoordinatorHealth(msgspec.Struct, frozen=True, kw_only=True):
    """`status`: healthy; degraded (no worker is there, or the model did not answer when it was asked last); unhealthy.

    `components` are protocol, ledger, coordinator (its own loops), workers and model. `checked_at` is in seconds since
    the epoch.
    """

    status: Literal["healthy", "degraded", "unhealthy"]
    components: Mapping[str, bool]
    errors: tuple[str, ...] = ()
    checked_at: float = 0.0


class CoordinatorStats(msgspec.Struct, frozen=True, kw_only=True):
    """Counted now: workers that are there, tasks of the ledger by status, and what this process's protocol has done.

    `unfinished_runs` counts up to 10,000. A worker that was killed is among `workers` until its third beat is missed.
    """

    workers: int
    workers_idle: int
    workers_busy: int
    workers_by_role: Mapping[str, int]
    workers_by_capability: Mapping[str, int]
    tasks: Mapping[str, int]
    unfinished_runs: int
    protocol: ProtocolMetrics
    at: float


class RunLedgers(msgspec.Struct, frozen=True, kw_only=True):
    """A run's two ledgers: what is known (`facts`), supposed (`guesses`) and planned (status by subtask); the progress.

    `stalls`: how many plans in a row have ended without one more subtask finished. `replans_left`: how often the model
    may still be asked. `version` counts the plans.
    """

    facts: tuple[str, ...]
    guesses: tuple[str, ...]
    plan: Mapping[str, str]
    version: int
    finished: int
    failed: int
    stalls: int
    replans_left: int
    limits: RunLimits


def ledgers_of(state: RunState) -> RunLedgers:
    head = state.header
    statuses = Counter(row.status for row in state.rows.values())
    return RunLedgers(
        facts=head.facts,
        guesses=head.guesses,
        plan={name: row.status for name, row in state.rows.items()},
        version=head.version,
        finished=statuses["done"],
        failed=statuses["failed"],
        stalls=head.stalls,
        replans_left=head.plans_left,
        limits=head.limits,
    )


async def look_at_health(
    protocol: Protocol, ledger: Ledger, *, workers: bool, troubles: Iterable[object], model_trouble: str, at: float
) -> CoordinatorHealth:
    """`troubles` are those of the coordinator's own loops; `model_trouble` is empty when the last call was answered."""
    found, kept = await asyncio.gather(protocol.health(), ledger.health())
    own = tuple(map(str, troubles))
    components = {
        "protocol": found.ok,
        "ledger": kept.ok,
        "coordinator": not own,
        "workers": workers,
        "model": not model_trouble,
    }
    status: Literal["healthy", "degraded", "unhealthy"] = "healthy"
    if not all(components[name] for name in _NEEDED):
        status = "unhealthy"
    elif not all(components.values()):
        status = "degraded"
    stores = [store.detail for store in (found, kept) if not store.ok]  # one that is well tells where it is
    told = tuple(filter(None, (*stores, *own, model_trouble)))
    return CoordinatorHealth(status=status, components=components, errors=told, checked_at=at)


async def count(
    protocol: Protocol, ledger: Ledger, runs: Runs, members: Sequence[Member], at: float
) -> CoordinatorStats:
    """Reads an index of all tasks: not for every second at millions of them."""
    counted = await ledger.stats()
    statuses = ("total", "pending", "assigned", "in_progress", "completed", "failed", "cancelled")
    by_status = Counter(member.status for member in members)
    return CoordinatorStats(
        workers=len(members),
        workers_idle=by_status["idle"],
        workers_busy=by_status["busy"],
        workers_by_role=Counter(member.role for member in members),
        workers_by_capability=Counter(name for member in members for name in member.capabilities),
        tasks={name: getattr(counted, name) for name in statuses},
        unfinished_runs=len(await runs.unfinished(_MOST_RUNS)),
        protocol=protocol.metrics(),
        at=at,
    )
