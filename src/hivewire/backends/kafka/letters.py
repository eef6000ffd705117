"""Dead letters: a compacted topic, one record a letter, removed by an empty one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence, Set
from typing import TYPE_CHECKING

import msgspec

from hivewire.backend import Append, Dead, DeadRecord, Room
from hivewire.backends.kafka.catalogue import Follower
from hivewire.backends.kafka.packing import KafkaMessage, letter_key, pack_letter, stored_at, unpack_letter
from hivewire.backends.kafka.sending import Item

if TYPE_CHECKING:
    from hivewire.backends.kafka.backend import KafkaBackend

_EXISTS = "topic/dead"
_AT_ONCE = 500
_read_key = msgspec.msgpack.Decoder(tuple[str, str, int]).decode


class _Known(msgspec.Struct, gc=False):
    offset: int
    queue: str
    id: str
    dead_at: float


class Letters:
    """An index of all letters in memory, without their bodies."""

    def __init__(self, backend: KafkaBackend) -> None:
        self._backend = backend
        self._known: dict[bytes, _Known] = {}
        self._counts: Counter[str] = Counter()
        self._topic = backend.names.dead
        self._log = Follower(backend, self._topic, 0, self._take)

    def _take(self, message: KafkaMessage) -> None:
        key = message.key() or b""
        before = self._known.pop(key, None)
        if before is not None:
            self._counts[before.queue] -= 1
        if message.value() is not None:
            queue, id, _ = _read_key(key)
            self._known[key] = _Known(message.offset(), queue, id, stored_at(message))
            self._counts[queue] += 1

    async def _ensure(self) -> None:
        await self._backend.topics.ensure_own(
            self._topic, 1, {"cleanup.policy": "compact", "min.cleanable.dirty.ratio": "0.1"}
        )
        if not self._backend.catalogue.known(_EXISTS).version:
            await self._backend.catalogue.put(_EXISTS, b"1", 0)

    async def _fresh(self) -> bool:
        """Whether there ever was a letter; the index is up to date then."""
        if not self._backend.catalogue.known(_EXISTS).version:
            return False
        await self._log.catch_up()
        return True

    async def bury(self, queue: str, batch: Sequence[Dead]) -> None:
        """Returns when all are stored. The same letter twice is one."""
        await self._ensure()
        letters = [
            (letter_key(queue, dead.fetched.record), pack_letter(queue, dead.fetched.record, dead.letter))
            for dead in batch
        ]
        await self._backend.store_all([Item(self._topic, None, 0, 0, key, letter, None) for key, letter in letters])

    async def count(self, queue: str) -> int:
        return self._counts[queue] if await self._fresh() else 0

    async def listed(self, queue: str | None, limit: int, after: str | None) -> Sequence[DeadRecord]:
        if not await self._fresh():
            return []
        start = -1 if after is None else int(after)
        chosen = self._chosen(lambda known: queue in (None, known.queue) and known.offset > start)
        return await self._read(chosen[:limit])

    def _chosen(self, wanted: Callable[[_Known], bool]) -> Sequence[tuple[bytes, _Known]]:
        found = [(key, known) for key, known in self._known.items() if wanted(known)]
        found.sort(key=lambda item: item[1].offset)
        return found

    async def _read(self, chosen: Sequence[tuple[bytes, _Known]]) -> Sequence[DeadRecord]:
        if not chosen:
            return []
        offsets = {known.offset for _, known in chosen}
        messages = await self._backend.reader.read(self._topic, 0, min(offsets), max(offsets), offsets)
        return [unpack_letter(f"{message.offset():020}", message) for message in messages if message.value()]

    async def revive(self, queue: str | None, ids: Sequence[str] | None) -> int:
        """Stored again first, then removed: a crash in between leaves the letter, and the second replay of the
        same life is recognised."""
        wanted = None if ids is None else set(ids)
        revived = 0
        while True:
            async with self._backend.catalogue.lock("dead"):  # of two replays at once one finds the letter
                again = await self._revive_some(queue, wanted)
            revived += again
            if again < _AT_ONCE:
                return revived

    async def _revive_some(self, queue: str | None, wanted: Set[str] | None) -> int:
        if not await self._fresh():
            return 0
        chosen = self._chosen(lambda known: queue in (None, known.queue) and (wanted is None or known.id in wanted))
        chosen = chosen[:_AT_ONCE]
        letters = await self._read(chosen)
        again = [
            Append(dead.queue, [msgspec.structs.replace(dead.record, replay=dead.record.replay + 1)], room=Room.ALWAYS)
            for dead in letters
        ]
        for refused in (await self._backend.append(again)).values():
            if isinstance(refused, Exception):
                raise refused
        await self._remove([letter_key(dead.queue, dead.record) for dead in letters])
        return len(letters)

    async def purge(self, queue: str | None, ids: Sequence[str] | None, before: float | None) -> int:
        if not await self._fresh():
            return 0
        wanted = None if ids is None else set(ids)
        chosen = self._chosen(
            lambda known: (
                queue in (None, known.queue)
                and (wanted is None or known.id in wanted)
                and (before is None or known.dead_at <= before)
            )
        )
        await self._remove([key for key, _ in chosen])
        return len(chosen)

    async def _remove(self, keys: Sequence[bytes]) -> None:
        if keys:
            await self._backend.store_all([Item(self._topic, None, 0, 0, key, None, None) for key in keys])
