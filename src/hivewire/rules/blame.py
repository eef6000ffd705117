"""Whose fault it was that a process died."""

from __future__ import annotations

from typing import Final

from hivewire.record import Fetched

_SUSPICIOUS_CRASHES = 2
MOST_INTERNAL_CRASHES: Final = 20
"""After so many deaths of its process, work of the engine itself is given up, too."""


def judge(fetched: Fetched, *, is_internal: bool = False) -> None:
    """Bring the counters of a record up to date whose last owner died while holding it.

    Alone at the death: its own failure. Beside others: a crash, which counts towards running alone, not
    towards the dead letters. Only prefetched: nothing.

    `is_internal`: the engine's own work, in which no handler runs. Whoever died was hardly killed by it: each death is
    a crash, and no failed attempt.
    """
    if is_internal:
        fetched.crashes += fetched.died > 0
    elif fetched.died == 1:
        fetched.failures += 1
    elif fetched.died > 1:
        fetched.crashes += 1
    fetched.died = 0


def is_killer(fetched: Fetched, max_attempts: int, *, is_internal: bool = False) -> bool:
    """It is not started again. What is internal has a limit of its own, far above that of handlers: a few outages must
    not end it, and what does kill its process must not go on for ever."""
    if is_internal:
        return fetched.crashes >= max(max_attempts, MOST_INTERNAL_CRASHES)
    return fetched.failures >= max_attempts


def runs_alone(fetched: Fetched, *, is_internal: bool = False) -> bool:
    """It ran at two crashes, and it is not known whether it caused them. Never what is internal: it would wait for
    handlers that last, and hold up all others."""
    return fetched.crashes >= _SUSPICIOUS_CRASHES and not is_internal
