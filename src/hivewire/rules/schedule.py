"""What a schedule owes: which of its times are due, and which of those are made good when nobody was there."""

from __future__ import annotations

from datetime import UTC, datetime, tzinfo
from typing import TYPE_CHECKING, Final, Literal, Protocol

import msgspec

if TYPE_CHECKING:
    from hivewire.rules.cron import Cron

CatchUp = Literal["one", "all", "none"]

ON_TIME_S: Final = 60.0
"""With `none`, what is due is still fired when it is not later than this."""
_AT_ONCE: Final = 100
_ROUNDED_S: Final = 1e-6
_MOST_COUNTED: Final = 1_000


class Timing(Protocol):
    """When something is due again and again. Times are seconds since the epoch."""

    def after(self, moment: float) -> float:
        """The first time after the moment."""


class Every(msgspec.Struct, frozen=True):
    """At fixed distances from an anchor."""

    every_s: float
    anchor: float

    def after(self, moment: float) -> float:
        # A time that was rounded down a little is not to come a second time.
        number = int((moment - self.anchor + _ROUNDED_S) // self.every_s) + 1
        due = self.anchor + number * self.every_s
        return due if due > moment else due + self.every_s  # the product is rounded


class Calendar(msgspec.Struct, frozen=True):
    """By a cron expression in a time zone."""

    cron: Cron
    zone: tzinfo

    def after(self, moment: float) -> float:
        return self.cron.after(datetime.fromtimestamp(moment, UTC), self.zone).timestamp()


class Owed(msgspec.Struct, frozen=True):
    """`fire`: due times to fire now, oldest first. `missed`: how many before them are not made good (at most
    1,000 are counted). `next_at`: when to look again."""

    fire: tuple[float, ...]
    missed: int
    next_at: float


def owed(timing: Timing, next_at: float, now: float, catch_up: CatchUp) -> Owed:
    """What is due of a schedule whose first unfired time is `next_at`.

    `one`: of several that are due, the latest. `all`: every one, at most 100 at a time. `none`: the latest, and only
    within a minute of its time.

    >>> owed(Every(10.0, 0.0), 10.0, 45.0, "one")
    Owed(fire=(40.0,), missed=3, next_at=50.0)
    """
    if next_at > now:
        return Owed((), 0, next_at)
    if catch_up == "all":
        fire = [next_at]
        while (following := timing.after(fire[-1])) <= now and len(fire) < _AT_ONCE:
            fire.append(following)
        return Owed(tuple(fire), 0, following)
    latest = _latest(timing, next_at, now)
    missed, at = 0, next_at
    while at < latest and missed < _MOST_COUNTED:
        missed, at = missed + 1, timing.after(at)
    following = timing.after(latest)
    if catch_up == "none" and now - latest > ON_TIME_S:
        return Owed((), min(missed + 1, _MOST_COUNTED), following)
    return Owed((latest,), missed, following)


def _latest(timing: Timing, first: float, now: float) -> float:
    """The last due time that is not after `now`. Found from behind: there may be very many."""
    back = 1.0
    while now - back > first:
        due = timing.after(now - back)
        if due <= now:
            break
        back *= 2
    else:
        due = first
    while (following := timing.after(due)) <= now:
        due = following
    return due
