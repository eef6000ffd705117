"""Messages for later, as a log tells of them: what was stored, who moves what is due, who cancels.

Invariants: a name is used for one record, ever. A message is claimed, and then moved, or it is cancelled: whichever the
log has first, and never both. Names leave the log in the order in which they are given here (`names_of`, `names_by`,
`stale`): so a log of which a part was compacted tells the same as the whole.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence, Set
from heapq import heappop, heappush

import msgspec


class Later(msgspec.Struct, gc=False):
    """A message, stored at `at` in the log. `spread` chooses its shard; `older`: of its repeated sends, names of those
    that count no more."""

    at: int
    name: bytes
    life: tuple[str, int]
    due_at: float
    spread: int
    claim: bytes | None = None
    older: tuple[bytes, ...] = ()


class _Decision(msgspec.Struct, gc=False):
    made_at: float
    open: set[int]
    """Of a claim: what is not moved yet."""
    names: tuple[bytes, ...] = ()
    """Of what was cancelled."""


class Agenda:
    """What is to come for one queue.

    >>> agenda = Agenda()
    >>> agenda.stored(Later(7, b"m", ("id", 0), due_at=30.0, spread=1))
    >>> agenda.claimed(b"c", [7], made_at=31.0)
    >>> agenda.cancelled(b"x", [7], made_at=29.0)
    []
    """

    def __init__(self) -> None:
        self.known: dict[int, Later] = {}
        self._at: dict[bytes, int] = {}
        self._newest: dict[tuple[str, int], int] = {}
        self._heap: list[tuple[float, int]] = []
        self._decisions: dict[bytes, _Decision] = {}

    # -- what the log says, in its order

    def stored(self, later: Later) -> None:
        """A repeated send takes the place of the first, unless that is being moved."""
        self.removed(later.name)  # versions before this one used a name again
        before = self.known.get(self._newest.get(later.life, -1))
        if before is not None and before.claim is None:
            self._drop(before)
            later.older = (*before.older, before.name)
        self.known[later.at] = later
        self._at[later.name] = self._newest[later.life] = later.at
        heappush(self._heap, (later.due_at, later.at))

    def claimed(self, name: bytes, ats: Iterable[int], made_at: float) -> None:
        """Those that are still there are moved, by whoever owns their shard, even if it is not who claims them."""
        taken = set()
        for at in ats:
            later = self.known.get(at)
            if later is not None and later.claim is None:
                later.claim = name
                taken.add(at)
        self._decisions[name] = _Decision(made_at, taken)

    def cancelled(self, name: bytes, ats: Iterable[int], made_at: float) -> list[int]:
        """Those that were there, unclaimed and not due: they are gone."""
        gone = [at for at in ats if self.is_to_come(at, made_at)]
        names: list[bytes] = []
        for at in gone:
            later = self.known[at]
            names += *later.older, later.name
            self._drop(later)
        self._decisions[name] = _Decision(made_at, set(), tuple(names))
        return gone

    def removed(self, name: bytes) -> None:
        """The record of this name is nothing any more."""
        later = self.known.get(self._at.get(name, -1))
        if later is not None:
            self._drop(later)
            if later.claim in self._decisions:
                self._decisions[later.claim].open.discard(later.at)
        self._decisions.pop(name, None)

    def _drop(self, later: Later) -> None:
        del self.known[later.at], self._at[later.name]
        if self._newest.get(later.life) == later.at:
            del self._newest[later.life]

    # -- what follows from it

    def is_to_come(self, at: int, now: float) -> bool:
        """It waits for its time, and can be cancelled."""
        later = self.known.get(at)
        return later is not None and later.claim is None and later.due_at > now

    def due(self, now: float, owned: Set[int], shards: int, limit: int) -> tuple[list[Later], float | None]:
        """What is due in owned shards, the earliest first, and when to look again, if that is known."""
        found: list[Later] = []
        looked_at: list[tuple[float, int]] = []
        at: float | None = None
        while self._heap:
            due_at, place = self._heap[0]
            later = self.known.get(place)
            if later is not None and (due_at > now or len(found) == limit):
                at = max(due_at, now)
                break
            heappop(self._heap)
            if later is not None:
                looked_at.append((due_at, place))
                if later.spread % shards in owned:
                    found.append(later)
        for item in looked_at:
            heappush(self._heap, item)
        return found, at

    def names_of(self, moved: Sequence[Later]) -> list[bytes]:
        """What leaves the log when these were moved: they, and the claims that end with them."""
        ats = {later.at for later in moved}
        claims = {later.claim for later in moved if later.claim is not None}
        over = [claim for claim in claims if claim in self._decisions and self._decisions[claim].open <= ats]
        return [name for later in moved for name in (*later.older, later.name)] + over

    def names_by(self, cancel: bytes) -> list[bytes]:
        """What leaves the log when this was decided."""
        decision = self._decisions.get(cancel)
        return [] if decision is None else [*decision.names, cancel]

    def stale(self, before: float) -> list[bytes]:
        """What leaves the log because whoever decided something before that time has died of it."""
        names: list[bytes] = []
        for name, decision in self._decisions.items():
            if decision.made_at < before and not decision.open:
                names += *decision.names, name
        return names
