"""The demo's accident: one member is killed in the middle of a subtask."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

from hivewire.cli.tally import Start, Tally
from hivewire.cli.team_members import Members

_SHARE: Final = 0.3
_MOST_KILLS: Final = 4


class Chaos:
    """Kills a member once a share of the largest group of subtasks is done, while it is on one of the rest.

    A start is known a moment after it happened, so the victim may have finished meanwhile. The proof is
    that its subtask is delivered again; when all of its answers turn up instead, another one is killed.
    """

    def __init__(self, members: Members, tell: Callable[[str], None], share: float = _SHARE) -> None:
        self._members = members
        self._tell = tell
        self._share = share
        self._shown: set[tuple[str, str]] = set()

    def look(self, tally: Tally) -> None:
        """Called after each change of the books."""
        self._report(tally)
        if len(tally.kills) >= _MOST_KILLS or any(not kill.missed for kill in tally.kills):
            return
        capability, (done, whole) = max(tally.by_capability().items(), key=lambda item: item[1][1])
        if whole < 2 or done < whole * self._share or done == whole:
            return
        rows = tally.state.rows
        busy = [
            start
            for start in tally.at_work.values()
            if start.subtask in rows and rows[start.subtask].spec.assigned_to == capability
        ]
        if busy:
            self._strike(tally, max(busy, key=lambda start: start.at))

    def _strike(self, tally: Tally, freshest: Start) -> None:
        now = time.time()
        if not self._members.kill(freshest.member):
            return
        pieces = tally.killed(freshest.member, now).pieces.values()
        work = ", ".join(f"{start.subtask} ({now - start.at:.2f} s into it)" for start in pieces)
        how = "killed worker process" if self._members.kind == "process" else "abandoned"
        by = " with SIGKILL" if self._members.kind == "process" else " without a word to the store"
        self._tell(f"{how} {freshest.member}{by}, in the middle of {work}")

    def _report(self, tally: Tally) -> None:
        for kill in tally.kills:
            for name, seconds in kill.taken_over.items():
                if (kill.member, name) not in self._shown:
                    self._shown.add((kill.member, name))
                    self._tell(f"{kill.pieces[name].subtask} was taken over {seconds:.2f} s after the kill")
            if kill.missed and (kill.member, "") not in self._shown:
                self._shown.add((kill.member, ""))
                self._tell(f"process {kill.member} had just finished what it was on; nothing had to be taken over")
