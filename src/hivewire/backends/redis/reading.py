"""One owned shard: how far it was read, and what of it is with the engine."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterable, Sequence
from typing import Any

from hivewire.backend import Fetched, Record
from hivewire.backends.redis.packing import decode_head, unpack_state

LOOK_RARER = 5
"""Who waits looks anew after `block_timeout_s`, should a bell have been lost; then in twice that time … up to so many
times."""

_MOST_ENTRIES = 2_048
_ANSWER_BYTES = 8 * 2**20
_UNKNOWN_BYTES = 64 * 2**10


def position(id: bytes) -> tuple[int, int]:
    ms, _, number = id.partition(b"-")
    return int(ms), int(number)


class Read(Fetched, gc=False):
    """A record with its id in the stream, which is its position, too."""

    id: bytes = b""


def entry_id(fetched: Fetched) -> bytes:
    """The stream's id of a record that this driver has handed out."""
    assert isinstance(fetched, Read)
    return fetched.id


def read(entries: Sequence[Any], shard: int, token: int) -> list[Read]:
    """What stands in a stream."""
    found = []
    last, second = b"", 0.0
    for id, fields in entries:
        ms = id.partition(b"-")[0]
        if ms != last:  # what comes together was often stored together
            last, second = ms, int(ms) / 1000
        stored_at = second
        try:
            # By place, as the scripts and `append` write them: h, b and, for what was delayed, t.
            name, key, type_, sender, ttl_s, priority, replay = decode_head(fields[1])
            record = Record(name, key, fields[3], type_, sender, ttl_s, priority, replay)
            if len(fields) > 5:
                stored_at = int(fields[5]) / 1000
        except (IndexError, ValueError):  # msgspec's errors are ValueErrors
            record = foreign(id, fields)
        found.append(Read(shard, id.decode(), token, record, stored_at, id=id))
    return found


class Portion:
    """How many entries of each of some streams one read may bring, so that its answer is not too large. Judged by the
    entries that came last; the first read asks for few.

    >>> portion = Portion()
    >>> portion.most(8)
    16
    >>> for _ in range(20):
    ...     portion.note([(b"1-0", [b"h", b"", b"b", b"x" * 500])])
    >>> portion.most(8), portion.most(1)
    (256, 2048)
    >>> portion.note([(b"2-0", [b"h", b"", b"b", b"x" * 2**20])])
    >>> portion.most(8), portion.most(1)
    (1, 7)
    """

    __slots__ = ("_bytes",)

    def __init__(self) -> None:
        self._bytes = _UNKNOWN_BYTES

    def most(self, streams: int) -> int:
        return max(1, min(_MOST_ENTRIES, _ANSWER_BYTES // self._bytes) // streams)

    def note(self, entries: Sequence[Any]) -> None:
        size = max(sum(map(len, entries[0][1])), sum(map(len, entries[-1][1])), 1)
        self._bytes = size if size > self._bytes else self._bytes - (self._bytes - size + 1) // 2


def foreign(id: bytes, fields: Sequence[bytes]) -> Record:
    """What somebody else has put there: the engine finds it malformed and keeps its bytes."""
    name = f"foreign-{id.decode()}"
    return Record(name, name, b"\n".join(fields))


def remember(fetched: Fetched, counters: bytes | None) -> None:
    """What earlier owners have left of it."""
    if counters is not None:
        state = unpack_state(counters)
        fetched.starts, fetched.failures, fetched.crashes = state.starts, state.failures, state.crashes
        fetched.died = state.died


class Held:
    """A shard that this member owns, with the fencing token of its ownership."""

    __slots__ = (
        "_again_to",
        "buffer", "cursor", "is_leaving", "marked", "out", "paused", "rewinds", "shard", "states", "stored",
        "suspect_to", "token",
    )  # fmt: skip

    def __init__(self, shard: int, token: int, suspect_to: tuple[int, int]) -> None:
        self.shard = shard
        self.token = token
        self.suspect_to = suspect_to
        self.cursor: bytes = b"0-0"
        self.rewinds = 0
        self.is_leaving = False
        self.buffer: deque[Read] = deque()
        """Read and not handed out yet."""
        self.out: set[bytes] = set()
        """Handed out and not settled."""
        self._again_to: tuple[int, int] = (0, 0)
        """What lies up to here may be known already."""
        self.marked: set[bytes] = set()
        self.paused: set[bytes] = set()
        self.states: dict[bytes, bytes] = {}
        """Counters that earlier owners left."""
        self.stored: set[bytes] = set()
        """Records that the server may have counters of."""

    def take(self, entries: Sequence[Any]) -> float:
        """What was read behind the cursor. The server's clock is past the time that this returns."""
        self.cursor = entries[-1][0]
        if position(entries[0][0]) <= self._again_to:
            known = self.out | {fetched.id for fetched in self.buffer}
            entries = [entry for entry in entries if entry[0] not in known]
        self.buffer.extend(self.read(entries))
        return (position(self.cursor)[0] + 1) / 1000

    def behind(self, entries: Sequence[Any]) -> Sequence[Any]:
        """Those that were not read yet."""
        cursor = position(self.cursor)
        return [entry for entry in entries if position(entry[0]) > cursor]

    def rewind(self) -> None:
        """Read all of the shard again: a server that came back may have undone the last settlements."""
        self._again_to = max(self._again_to, position(self.cursor))
        self.cursor = b"0-0"
        self.rewinds += 1

    def read(self, entries: Sequence[Any]) -> list[Read]:
        found = read(entries, self.shard, self.token)
        if self.states or (found and position(found[0].id) <= self.suspect_to):
            for fetched in found:
                remember(fetched, self.states.pop(fetched.id, None))
                fetched.suspect = position(fetched.id) <= self.suspect_to
        return found

    def take_back(self, id: bytes) -> bool:
        """Whether nobody has had this record; if it was read already, it is forgotten."""
        if id not in self.out and position(id) > max(position(self.cursor), self._again_to):
            return True
        for fetched in self.buffer:
            if fetched.id == id:
                self.buffer.remove(fetched)
                return True
        return False

    def waiting(self, id: bytes) -> None:
        """It does not run: it waits for another attempt."""
        self.marked.discard(id)
        self.paused.add(id)

    def forget(self, ids: Sequence[bytes]) -> None:
        """Their outcomes are on their way to the server."""
        self.out.difference_update(ids)
        if self.marked:
            self.marked.difference_update(ids)
        if self.paused:
            self.paused.difference_update(ids)

    def unmarked(self) -> int:
        return len(self.out) - len(self.marked) - len(self.paused - self.marked)


def hand_out(shards: Iterable[Held], limit: int, lanes: int, run: int) -> list[Fetched]:
    """Take from what was read. A shard's records go in their order; the key of the more urgent record goes
    first where there is a choice."""
    taken: list[Fetched] = []
    keys: Counter[str] | None = None
    """Counted only when a limit may come into play."""
    least = min(limit, lanes, run)
    for held in shards:
        buffer, out = held.buffer, held.out
        if held.is_leaving or not buffer:
            continue
        if len(taken) + len(buffer) <= least:
            taken += buffer
            out.update([fetched.id for fetched in buffer])
            buffer.clear()
            continue
        if keys is None:
            keys = Counter([fetched.record.key for fetched in taken])
        while buffer:
            first = buffer[0]
            key = first.record.key
            count = keys.get(key, 0)
            if len(taken) >= limit or count >= run or (not count and len(keys) >= lanes):
                break  # a cursor cannot leave one out
            keys[key] = count + 1
            buffer.popleft()
            out.add(first.id)
            taken.append(first)
    return taken
