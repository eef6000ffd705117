"""Who has which message of a competing queue: a state that all its members compute alike, from one log.

Members write words into a log that has one order. Everybody applies each word when its turn comes, with the time
that the log gave it: so all agree, and nobody decides. A message is finished, held by one member, or free.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Sequence
from math import inf
from typing import Final

import msgspec

from hivewire.rules.dedup import Window
from hivewire.rules.words import At, Grant, Heard, Take, Word

_VERSION: Final = 1
_MOST_REMEMBERED: Final = 50_000


class _Seat(msgspec.Struct):
    lease_s: float
    heard_at: float
    last: int
    held: set[At]


class _Known(msgspec.Struct, gc=False):
    """A message that was taken at least once and is not finished."""

    life: int
    key: int
    holder: str | None = None
    starts: int = 0
    failures: int = 0
    crashes: int = 0
    due_at: float = 0.0
    died: int = 0
    suspect: bool = False
    running: bool = False
    seen: bool = False


class _Shard(msgspec.Struct, gc=False):
    """All below `low` and all in `ahead` is finished."""

    low: int = 0
    ahead: set[int] = msgspec.field(default_factory=set)

    def finish(self, offset: int) -> None:
        if offset < self.low:
            return
        self.ahead.add(offset)
        while self.low in self.ahead:
            self.ahead.remove(self.low)
            self.low += 1

    def finish_run(self, first: int, end: int) -> None:
        """`finish` for all of these."""
        if first > self.low:
            self.ahead.update(range(first, end))
        elif end > self.low:
            self.low = end
            self.ahead = {at for at in self.ahead if at >= end}
            while self.low in self.ahead:
                self.ahead.remove(self.low)
                self.low += 1


class Pool:
    """Invariants: a message has at most one holder, who is a member; a finished one has none and is never granted
    again; what a member says that was buried, or never joined, changes nothing."""

    def __init__(self, window_ids: int, life_s: float, key_s: float) -> None:
        self._shards: dict[int, _Shard] = {}
        self.known: dict[At, _Known] = {}
        self.free: dict[At, None] = {}
        """Those of `known` that nobody holds."""
        self.members: dict[str, _Seat] = {}
        self.topic = ""
        """What the messages lie in; "" while nobody has said it."""
        self._live: dict[int, At] = {}
        """By which message a life or a key is handled."""
        self._lives = Window(window_ids, life_s)
        self._keys = Window(window_ids, key_s)

    # -- looking

    def low(self, shard: int) -> int:
        """All below is finished."""
        return self._shards[shard].low if shard in self._shards else 0

    def ahead(self, shard: int) -> list[int]:
        """What is finished above `low`, rising."""
        return sorted(self._shards[shard].ahead) if shard in self._shards else []

    def is_fresh(self, at: At) -> bool:
        """Nobody has ever taken it."""
        shard = self._shards.get(at[0])
        return at not in self.known and (shard is None or (at[1] >= shard.low and at[1] not in shard.ahead))

    def may_be_taken(self, at: At, now: float) -> bool:
        known = self.known.get(at)
        if known is None:
            return self.is_fresh(at)
        return known.holder is None and known.due_at <= now

    def is_finished(self, at: At) -> bool:
        return at not in self.known and not self.is_fresh(at)

    def next_due(self, now: float) -> float | None:
        """When the next of those falls due that wait."""
        return min((due for at in self.free if (due := self.known[at].due_at) > now), default=None)

    def is_taken(self, at: At) -> bool:
        """Somebody holds it."""
        known = self.known.get(at)
        return known is not None and known.holder is not None

    def is_held(self, at: At, member: str) -> bool:
        known = self.known.get(at)
        return known is not None and known.holder == member

    def remembers(self, shard: int, before: int) -> bool:
        """Whether it could forget anything if that is gone."""
        known = self._shards.get(shard)
        return (known is not None and any(at < before for at in known.ahead)) or any(
            number == shard and at < before for number, at in self.free
        )

    # -- applying

    def apply(self, word: Word, place: int, now: float) -> Heard:
        """The word stands at this place of the log, which it reached at `now`."""
        heard = Heard()
        if word.topic and word.topic != self.topic:
            if self.topic:
                self._begin_anew()
                heard.freed = True
            self.topic = word.topic
        for shard, first, end in word.gaps:
            self._finish_run(shard, first, end)
        for shard, before in word.gone:
            self._forget(shard, before)
        if word.silent is not None:
            self._bury(word.silent, now, heard)
        seat = self.members.get(word.member)
        if word.lease_s and seat is None:
            seat = self.members[word.member] = _Seat(word.lease_s, now, place, set())
        if seat is None:
            heard.is_member = False
            heard.refused = [*word.done, *((k.shard, k.offset) for k in (*word.started, *word.back))]
            return heard
        seat.heard_at, seat.last = now, place
        if word.done or word.started or word.back:
            self._settle(word, seat, now, heard)
        if word.take is not None:
            self._take(word.member, seat, word.take, now, heard)
        if word.leaves:
            self._let_go(word.member, died=False)
            heard.freed = True
        return heard

    def _finish_run(self, shard: int, first: int, end: int) -> None:
        """But for what is known. A run may be of millions."""
        if end - first <= len(self.known):
            known = [at for at in range(first, end) if (shard, at) in self.known]
        else:
            known = sorted(at for number, at in self.known if number == shard and first <= at < end)
        for at in (*known, end):
            if first < at:
                self._shards.setdefault(shard, _Shard()).finish_run(first, at)
            first = at + 1

    def _forget(self, shard: int, before: int) -> None:
        """But for what somebody holds: that ends when he says so."""
        known = self._shards.get(shard)
        if known is not None:
            known.ahead = {at for at in known.ahead if at >= before}
        for at in [at for at in self.free if at[0] == shard and at[1] < before]:
            del self.free[at]
            self._forget_live(self.known.pop(at), at)

    def _begin_anew(self) -> None:
        """Positions are other messages' by now. What was settled lately is a duplicate all the same."""
        for kept in (self._shards, self.known, self.free, self.members, self._live):
            kept.clear()

    def _settle(self, word: Word, seat: _Seat, now: float, heard: Heard) -> None:
        refused: list[At] = []
        self._lives.tidy(now)
        self._keys.tidy(now)
        for shard, offset in word.done:
            at = (shard, offset)
            known = self.known.get(at)
            if known is None or known.holder != word.member:
                refused.append(at)
                continue
            seat.held.discard(at)
            del self.known[at]
            self._shards.setdefault(shard, _Shard()).finish(offset)
            if not known.seen:
                self._forget_live(known, at)
                self._lives.new[known.life] = None
                if known.key:
                    self._keys.new[known.key] = None
        for kept in (*word.started, *word.back):
            at = (kept.shard, kept.offset)
            known = self.known.get(at)
            if known is None or known.holder != word.member:
                refused.append(at)
                continue
            known.starts, known.failures, known.crashes = kept.starts, kept.failures, kept.crashes
            known.running = True
        for kept in word.back:
            at = (kept.shard, kept.offset)
            known = self.known.get(at)
            if known is not None and known.holder == word.member:
                seat.held.discard(at)
                self._release(at, known)
                known.due_at = kept.due_at
                known.suspect = False
                heard.freed = True
        heard.refused = refused

    def _take(self, member: str, seat: _Seat, take: Take, now: float, heard: Heard) -> None:
        granted: list[Grant] = []
        starting = take.starting
        for offer in take.offers:
            if len(granted) >= take.most:
                break
            at = (offer.shard, offer.offset)
            if not self.may_be_taken(at, inf if take.runs else now):
                continue
            known = self.known.get(at)
            if known is None:
                known = self.known[at] = _Known(offer.life, offer.key)
            self.free.pop(at, None)
            known.holder, known.seen = member, self._is_double(known, at)
            seat.held.add(at)
            known.running = starting > 0 and not known.suspect and not known.seen
            starting -= 1
            known.starts = max(known.starts, offer.starts) + known.running
            granted.append(
                Grant(
                    at,
                    known.starts,
                    known.failures,
                    known.crashes,
                    known.died,
                    known.suspect,
                    known.running,
                    known.seen,
                )
            )
            known.died = 0
        heard.granted = granted

    def _is_double(self, known: _Known, at: At) -> bool:
        """It was settled lately, or another one of the same life or key is on its way to be."""
        if known.life in self._lives or (known.key and known.key in self._keys):
            return True
        names = (known.life, known.key) if known.key else (known.life,)
        if any(self._live.get(name, at) != at for name in names):
            return True
        for name in names:
            self._live[name] = at
        return False

    def _forget_live(self, known: _Known, at: At) -> None:
        for name in (known.life, known.key):
            if self._live.get(name) == at:
                del self._live[name]

    def _bury(self, silent: tuple[str, int], now: float, heard: Heard) -> None:
        name, last = silent
        seat = self.members.get(name)
        if seat is not None and seat.last == last and now - seat.heard_at >= seat.lease_s:
            self._let_go(name, died=True)
            heard.buried, heard.freed = name, True

    def _let_go(self, name: str, *, died: bool) -> None:
        seat = self.members.pop(name)
        running = sum(self.known[at].running for at in seat.held)
        for at in sorted(seat.held):
            known = self.known[at]
            known.died = running if died and known.running else 0
            known.suspect = known.suspect or died
            known.due_at = 0.0
            self._release(at, known)

    def _release(self, at: At, known: _Known) -> None:
        known.holder, known.running = None, False
        self.free[at] = None

    # -- keeping

    def pack(self) -> bytes:
        """The whole state, to begin with instead of the log's past."""
        lives = list(self._lives)[-_MOST_REMEMBERED:]
        keys = list(self._keys)[-_MOST_REMEMBERED:]
        return _write(
            _Packed(
                _VERSION,
                [(number, shard.low, _runs(sorted(shard.ahead))) for number, shard in self._shards.items()],
                [(*at, known) for at, known in self.known.items()],
                list(self.free),
                {name: (seat.lease_s, seat.heard_at, seat.last) for name, seat in self.members.items()},
                _bytes_of(lives),
                _bytes_of(keys),
                self.topic,
            )
        )

    def restore(self, packed: bytes, now: float) -> None:
        """Raises `ValueError` for what `pack` of this release has not made."""
        try:
            state = _read(packed)
        except msgspec.DecodeError as error:
            raise ValueError(f"state of a competing queue: {error}") from None
        if state.version != _VERSION:
            raise ValueError(f"state of a competing queue in version {state.version}, not {_VERSION}")
        self.topic = state.topic
        for number, low, runs in state.shards:
            ahead = {offset for first, end in runs for offset in range(first, end)}
            self._shards[number] = _Shard(low, ahead)
        self.members = {name: _Seat(*seat, set()) for name, seat in state.members.items()}
        for shard, offset, known in state.known:
            at = (shard, offset)
            self.known[at] = known
            if known.holder is not None:
                self.members[known.holder].held.add(at)
            if not known.seen:
                for name in (known.life, known.key) if known.key else (known.life,):
                    self._live[name] = at
        self.free = dict.fromkeys(state.free)
        for window, names in ((self._lives, state.lives), (self._keys, state.keys)):
            for name in array("Q", names):
                window.add(name, now)


class _Packed(msgspec.Struct, array_like=True):
    version: int
    shards: Sequence[tuple[int, int, Sequence[tuple[int, int]]]]
    known: Sequence[tuple[int, int, _Known]]
    free: Sequence[At]
    members: dict[str, tuple[float, float, int]]
    lives: bytes
    keys: bytes
    topic: str = ""


_write = msgspec.msgpack.Encoder().encode
_read = msgspec.msgpack.Decoder(_Packed).decode


def _bytes_of(names: Iterable[object]) -> bytes:
    return array("Q", [name for name in names if isinstance(name, int)]).tobytes()


def _runs(offsets: Iterable[int]) -> list[tuple[int, int]]:
    runs: list[tuple[int, int]] = []
    for offset in offsets:
        if runs and runs[-1][1] == offset:
            runs[-1] = (runs[-1][0], offset + 1)
        else:
            runs.append((offset, offset + 1))
    return runs
