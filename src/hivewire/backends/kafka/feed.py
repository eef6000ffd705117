"""Messages of a competing queue that nobody has taken yet, as far as they were read here."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from hashlib import blake2b
from typing import TYPE_CHECKING, Final

import msgspec

from hivewire.backends.kafka.packing import KafkaMessage, record_of, stored_at
from hivewire.record import Record, life
from hivewire.rules.pool import Pool
from hivewire.rules.priority import Shares
from hivewire.rules.words import At, Offer

if TYPE_CHECKING:
    from hivewire.backends.kafka.backend import KafkaBackend

_MOST_BUFFERED: Final = 4_000


class Fresh(msgspec.Struct, gc=False):
    """A message that was read."""

    at: At
    record: Record
    stored_at: float

    def offer(self) -> Offer:
        key = self.record.dedup_key
        return Offer(*self.at, number(life(self.record)), 0 if key is None else number(("key", key)))


def number(name: object) -> int:
    """The same in every process; never 0, which stands for none."""
    return int.from_bytes(blake2b(repr(name).encode("utf-8", "surrogatepass"), digest_size=8).digest()) | 1


class Feed:
    """Reads all partitions of one queue from where all below is finished. Shared by the consumers of the process."""

    def __init__(self, backend: KafkaBackend, queue: str, pool: Pool) -> None:
        self._backend = backend
        self._queue = queue
        self.topic = backend.names.topic(queue)
        self._pool = pool
        self.partitions = 0
        self._lines: dict[int, deque[Fresh]] = {}
        self._shares = Shares()
        self._buffered = 0
        self._taken: dict[At, Fresh] = {}
        """Offered at the moment."""
        self._next: dict[int, int] = {}
        """All below was read, or was finished before."""
        self.gaps: list[tuple[int, int, int]] = []
        self._is_full = False
        self._followed = ""
        self.is_anew = False
        """Positions come that were read before: the topic was deleted and made anew."""
        self._ears: list[Callable[[], None]] = []

    def listen(self, ear: Callable[[], None]) -> None:
        """`ear` is called when something has come."""
        self._ears.append(ear)

    async def follow(self) -> None:
        """What is not finished, if it is not followed already: of a topic that was made anew, from its start."""
        if self._followed == self._pool.topic and not self.is_anew:
            return
        for number in range(self.partitions):
            self._backend.tail.unfollow(self.topic, number)
        self._followed, self.is_anew = self._pool.topic, False
        for kept in (self._lines, self._taken, self._next, self.gaps):
            kept.clear()
        self._buffered, self._is_full = 0, False
        self.partitions = await self._backend.topics.ensure(self._queue)
        for number in range(self.partitions):
            low = self._next[number] = self._pool.low(number)
            await self._backend.apart.follow(self.topic, number, low, self._sink(number))

    def close(self, ear: Callable[[], None]) -> bool:
        """True: nobody is left."""
        self._ears.remove(ear)
        if not self._ears:
            for number in range(self.partitions):
                self._backend.apart.unfollow(self.topic, number)
        return not self._ears

    def _sink(self, number: int) -> Callable[[Sequence[KafkaMessage], int], None]:
        return lambda messages, reached: self._arrived(number, messages, reached)

    def _arrived(self, number: int, messages: Sequence[KafkaMessage], reached: int) -> None:
        if self.is_anew:
            return
        expected = self._next[number]
        for message in messages:
            offset = message.offset()
            if offset < expected:
                self.is_anew = True
                return
            if offset > expected:
                self.gaps.append((number, expected, offset))
            expected = offset + 1
            if self._pool.is_fresh((number, offset)):
                fresh = Fresh((number, offset), record_of(message), stored_at(message))
                self._lines.setdefault(fresh.record.priority, deque()).append(fresh)
                self._buffered += 1
        if reached > expected:
            self.gaps.append((number, expected, reached))
        self._next[number] = max(expected, reached)
        if messages:
            self._backend.not_before(stored_at(messages[-1]))
            self._press()
        for ear in self._ears:
            ear()

    def _press(self) -> None:
        """Back-pressure: what nobody asks for is not read."""
        buffered = self._buffered
        places = [(self.topic, number) for number in range(self.partitions)]
        if buffered > _MOST_BUFFERED and not self._is_full:
            self._is_full = True
            self._backend.apart.pause(places)
        elif buffered < _MOST_BUFFERED // 2 and self._is_full:
            self._is_full = False
            self._backend.apart.resume(places)

    def has_read(self, ends: Mapping[int, int]) -> bool:
        return self._is_full or all(self._next.get(number, -1) >= end for number, end in ends.items())

    def offers(self, most: int) -> list[Offer]:
        """Up to so many, those whose turn it is first; `settle` tells what came of them."""
        found: list[Offer] = []
        shares = deepcopy(self._shares)
        while len(found) < most:
            waiting = self._waiting()
            if not waiting:
                break
            fresh = self._lines[shares.pick(waiting)].popleft()
            self._buffered -= 1
            if self._pool.is_fresh(fresh.at):
                self._taken[fresh.at] = fresh
                found.append(fresh.offer())
        self._press()
        return found

    def _waiting(self) -> list[int]:
        return sorted((level for level, line in self._lines.items() if line), reverse=True)

    def take(self, at: At) -> Fresh | None:
        """One that was granted here."""
        return self._taken.pop(at, None)

    def settle(self, offers: Sequence[Offer], granted: int) -> None:
        """So many of these were granted; those that nobody has are offered again before others, and their
        levels have not had their turn."""
        for offer in reversed(offers):
            fresh = self._taken.pop((offer.shard, offer.offset), None)
            if fresh is not None and self._pool.is_fresh(fresh.at):
                self._lines[fresh.record.priority].appendleft(fresh)
                self._buffered += 1
        if len(self._lines) > 1:
            levels = sorted(self._lines, reverse=True)
            for _ in range(granted):
                self._shares.pick(levels)
