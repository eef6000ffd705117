"""Whose fault it was that a process died."""

from __future__ import annotations

from hivewire.record import Fetched

_SUSPICIOUS_CRASHES = 2


def judge(fetched: Fetched) -> None:
    """Bring the counters of a record up to date whose last owner died while holding it.

    Alone at the death: its own failure. Beside others: a crash, which counts towards running alone, not
    towards the dead letters. Only prefetched: nothing.
    """
    if fetched.died == 1:
        fetched.failures += 1
    elif fetched.died > 1:
        fetched.crashes += 1
    fetched.died = 0


def runs_alone(fetched: Fetched) -> bool:
    """It ran at two crashes, and it is not known whether it caused them."""
    return fetched.crashes >= _SUSPICIOUS_CRASHES
