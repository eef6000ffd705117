"""From queues and keys to topics and partitions; and the cap of a queue, as well as a log can keep it."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Final

import msgspec

from hivewire.backend import Append, Duplicate, QueueSpec, Room
from hivewire.backends.kafka.clients import NotYet
from hivewire.backends.kafka.names import REPLY_PREFIX, key_bytes, partition_of
from hivewire.backends.kafka.packing import headers_of
from hivewire.backends.kafka.sending import Item, Parcel
from hivewire.backends.kafka.topics import Route
from hivewire.errors import BackendError, ConnectionLost, QueueFull
from hivewire.record import Record

if TYPE_CHECKING:
    from hivewire.backends.kafka.backend import KafkaBackend

_CAP: Final = 1_000_000
_LEAST_RESERVE: Final = 100
_LOOK_EACH_S: Final = 5.0
_LOOK_S: Final = 5.0
"""For what is known of a queue: whoever sends repeats it as long as there is time."""


class _Fill(msgspec.Struct):
    """How full a queue was when it was looked at, and what this process has sent since."""

    cap: int
    held: int = 0
    looked_at: float = float("-inf")


class Appending:
    """Stores batches. Calls for which something must be looked up first go one after another, and later calls
    wait behind them, so that the order of calls is the order in the log."""

    def __init__(self, backend: KafkaBackend) -> None:
        self._backend = backend
        self._fills: dict[str, _Fill] = {}
        self._slow = asyncio.Lock()
        self._slow_calls = 0

    async def append(self, batch: Sequence[Append]) -> Mapping[int, Duplicate | Exception]:
        problems: dict[int, Duplicate | Exception] = {}
        if self._slow_calls or any(self._needs_a_look(part) for part in batch):
            self._slow_calls += 1
            try:
                async with self._slow:
                    refused = [await self._looked(part) for part in batch]
                    parcel, places = self._send(batch, refused, problems)
            finally:
                self._slow_calls -= 1
        else:
            parcel, places = self._send(batch, None, problems)
        if places:
            await parcel.done
            if parcel.problems:
                self._look_for_topics(batch, parcel)
                problems.update({places[number]: error for number, error in parcel.problems.items()})
        return problems

    def _look_for_topics(self, batch: Sequence[Append], parcel: Parcel) -> None:
        """One that was deleted is made anew when the send is repeated."""
        if any(isinstance(error, NotYet) for error in parcel.problems.values()):
            for part in batch:
                self._backend.topics.changed(self._backend.names.topic(part.queue))

    def soon(self, queue: str, record: Record, room: Room) -> asyncio.Future[BackendError | None] | None:
        """One record, if nothing must be looked at first."""
        backend = self._backend
        route = backend.topics.routes.get(queue)
        if route is None or self._slow_calls:
            return None
        fill = self._fills.get(queue)
        if fill is None:
            if room is not Room.ALWAYS:
                return None
        else:
            if room is not Room.ALWAYS and (self._is_old(fill) or fill.held >= fill.cap):
                return None
            fill.held += 1
        return backend.sending.post_one(_item(queue, record, route))

    def _needs_a_look(self, part: Append) -> bool:
        if part.delay_s > 0:
            return True
        if self._backend.names.topic(part.queue) not in self._backend.topics.partitions:
            return True
        if part.queue.startswith(REPLY_PREFIX):
            return self._backend.topics.known(part.queue) is None
        if part.room is Room.ALWAYS:
            return False
        fill = self._fills.get(part.queue)
        if fill is None:
            return True
        return self._is_old(fill) or fill.held + len(part.records) > fill.cap

    @staticmethod
    def _is_old(fill: _Fill) -> bool:
        """Others send, too. Nobody looks at queues with room for a million."""
        return fill.cap < _CAP and asyncio.get_running_loop().time() - fill.looked_at > _LOOK_EACH_S

    async def _looked(self, part: Append) -> Exception | None:
        """Make the queue if there is none, see whether there is room, store what is delayed."""
        try:
            await self._backend.topics.ensure(part.queue)
            async with asyncio.timeout(_LOOK_S):
                if part.queue.startswith(REPLY_PREFIX):
                    await self._backend.topics.check_mailbox(part.queue)
                full = await self._refusal(part) if part.room is not Room.ALWAYS else None
            if full is not None:
                return full
            if part.delay_s > 0:
                due_at = self._backend.now() + part.delay_s
                await self._backend.delays.store(part.queue, part.records, due_at)
        except TimeoutError:
            return ConnectionLost(f"send to {part.queue}: what is known of it was not read within {_LOOK_S:g} s")
        except BackendError as error:
            return error
        return None

    async def _refusal(self, part: Append) -> QueueFull | None:
        fill = self._fills.get(part.queue)
        if fill is None:
            known = self._backend.topics.known(part.queue)
            cap = self._backend.settings.queue_cap or _CAP
            spec = known or await self._backend.topics.declare(QueueSpec(name=part.queue, cap=cap))
            fill = self._fills[part.queue] = _Fill(spec.cap)
        reserve = max(_LEAST_RESERVE, fill.cap // 10) if part.room is Room.RESERVE else 0
        if self._is_old(fill) or fill.held + len(part.records) > fill.cap + reserve:
            held = await self._backend.depth(part.queue)
            fill.held = held.ready + held.in_flight + held.scheduled
            fill.looked_at = asyncio.get_running_loop().time()
        if fill.held + len(part.records) > fill.cap + reserve:
            text = (
                f"send to {part.queue}: it holds {fill.held} messages and its cap is {fill.cap}; wait for its workers"
            )
            return QueueFull(f"{text}, or raise queue_cap")
        return None

    def _send(
        self,
        batch: Sequence[Append],
        refused: Sequence[Exception | None] | None,
        problems: dict[int, Duplicate | Exception],
    ) -> tuple[Parcel, Sequence[int]]:
        """Without waiting. The parcel's records have these running numbers in the batch."""
        items: list[Item] = []
        places: list[int] = []
        number = 0
        backend = self._backend
        for turn, part in enumerate(batch):
            problem = None if refused is None else refused[turn]
            if problem is not None:
                problems.update({number + n: problem for n in range(len(part.records))})
            elif part.delay_s <= 0:
                queue, records = part.queue, part.records
                route = backend.topics.routes.get(queue)
                if route is None:
                    route = backend.topics.routes[queue] = backend.topics.route(queue)
                fill = self._fills.get(queue)
                if fill is not None:
                    fill.held += len(records)
                items += [_item(queue, record, route) for record in records]
                places += range(number, number + len(records))
            number += len(part.records)
        return backend.sending.post(items), places


def _item(queue: str, record: Record, route: Route) -> Item:
    topic, partitions, partition, spreads = route
    key = key_bytes(record.key)
    if partition is None:
        partition = partition_of(key_bytes(record.id) if spreads else key, partitions)
    return Item(topic, record.id, record.replay, partition, key, record.body, headers_of(queue, record))
