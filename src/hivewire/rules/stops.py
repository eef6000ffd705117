"""What of a run is not wanted any more, and until when somebody who asked may still begin."""

from __future__ import annotations

from collections.abc import Collection
from math import inf
from typing import Final

import msgspec

PERMIT_S: Final = 0.5
"""Who has asked whether a subtask is still wanted may begin with it within this time from asking. After it, whoever
had it stopped knows that nothing begins any more."""


class Marks(msgspec.Struct, frozen=True):
    """What was stopped in one run: `everything`, or the subtasks' messages of these ids.

    >>> marks = Marks().with_stop(["a"])
    >>> marks.stops("a"), marks.stops("b"), marks.with_stop(()).stops("b")
    (True, False, True)
    """

    everything: bool = False
    messages: frozenset[str] = frozenset()

    def stops(self, message_id: str) -> bool:
        return self.everything or message_id in self.messages

    def with_stop(self, messages: Collection[str]) -> Marks:
        """With these stopped, too; without any, with everything stopped."""
        if self.everything or not messages:
            return Marks(everything=True)
        return Marks(messages=self.messages | frozenset(messages))


class Permit(msgspec.Struct, frozen=True):
    """What is known of the marks: as they were at `asked_at` (seconds of a clock that only rises), and when all marks
    together were at `epoch`."""

    epoch: int
    asked_at: float
    marks: Marks

    def start_by(self, epoch: int, epoch_asked_at: float) -> float:
        """Until when a start is allowed, given that the epoch was this one when somebody asked last. Where it has
        risen, marks may have changed: never."""
        return max(self.asked_at, epoch_asked_at) + PERMIT_S if epoch == self.epoch else -inf
