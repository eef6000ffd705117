"""One member of a competing queue whose messages the brokers lend out (`kafka.share_groups`). Experimental.

Invariants: a message is handed to the engine once for each time that it was lent, and not after that time; what was
finished is said in the log of claims before it is acknowledged, so that depth and space are known; what the brokers
have given up is in the dead letters before it counts as finished.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Coroutine, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

from hivewire.backend import Again, Consumer, Dead, Fetched, Letter, Ownership, Unfinished
from hivewire.backends.kafka.catalogue import Follower
from hivewire.backends.kafka.lending import Lending
from hivewire.backends.kafka.packing import KafkaMessage, record_of, stored_at
from hivewire.backends.kafka.seat import Seat, lease_clock
from hivewire.backends.kafka.tail import Place
from hivewire.errors import BackendError
from hivewire.rules.pool import Pool
from hivewire.rules.words import At, Heard, Word

if TYPE_CHECKING:
    from hivewire.backends.kafka.backend import KafkaBackend

log = logging.getLogger(__name__)

LOCK_S: Final = 30.0
_MARGIN_S: Final = 1.0
_TICK_S: Final = 0.2
_RETRY_S: Final = 0.2
_TRIED_S: Final = 3_600.0
_RUNS_ALONE: Final = 2
_WAY: Final = "way/"
_FEWEST, _MOST = 2, 10
"""Deliveries, as brokers allow them to be limited."""


def delivery_limit(max_attempts: int) -> int:
    return min(max(max_attempts, _FEWEST), _MOST)


async def is_lent(backend: KafkaBackend, queue: str) -> bool:
    """By a share group, or shared out by the log of claims: the first consumer decides for all, for ever. Raises
    `BackendError` for one that is set otherwise: each message would be handled twice."""
    key, wanted, catalogue = _WAY + queue, backend.settings.kafka.share_groups, backend.catalogue
    found = await catalogue.get(key)
    while not found.version:
        found = await catalogue.put(key, b"lent" if wanted else b"claimed", 0) or await catalogue.get(key)
    lent = found.value == b"lent"
    if lent != wanted:
        raise BackendError(
            f"receive from {queue}: its messages are {'lent out by a share group' if lent else 'claimed'}; set "
            f"kafka.share_groups to {str(lent).lower()} here, or take another agent"
        )
    return lent


class GivenUp:
    """What the brokers lent too often, by the topic that it is in. One for all queues of the process."""

    def __init__(self, backend: KafkaBackend) -> None:
        self._backend = backend
        self._follower = Follower(backend, backend.names.given_up, 0, self._take)
        self._waiting: dict[str, deque[tuple[At, int]]] = {}

    async def open(self) -> None:
        kept = {"retention.ms": "-1", "retention.bytes": "-1", "errors.deadletterqueue.group.enable": "true"}
        await self._backend.topics.ensure_own(self._follower.topic, 1, kept)
        await self._follower.open()

    def _take(self, message: KafkaMessage) -> None:
        told = dict(message.headers() or ())
        at = int(told["__dlq.errors.partition"]), int(told["__dlq.errors.offset"])
        times = int(told["__dlq.errors.delivery.count"])
        self.of(told["__dlq.errors.topic"].decode()).append((at, times))

    def of(self, topic: str) -> deque[tuple[At, int]]:
        """Its records, with the times that each was lent; to be taken off by who has buried them."""
        return self._waiting.setdefault(topic, deque())


class LentConsumer(Consumer):
    """Each batch is a shard of the engine's: all of it is lost at one time."""

    def __init__(self, backend: KafkaBackend, queue: str, owner: Ownership) -> None:
        self.backend = backend
        self.queue = queue
        self.topic = backend.names.topic(queue)
        self._owner = owner
        self._seat = Seat(backend, queue, self.topic, self._heard)
        self._lending: Lending | None = None
        self._partitions = 0
        self._news = asyncio.Event()
        self._ready: deque[Fetched] = deque()
        self._batches: dict[int, tuple[float, set[At]]] = {}
        """Until when each is ours, and what of it is not acknowledged."""
        self._count = 0
        self._closed = False
        self._tasks: set[asyncio.Task[None]] = set()
        self._group = backend.names.share_group(backend.settings.kafka.group_id, queue)
        self.owned: set[int] = set()
        """Partitions into which this member moves what was delayed: one member moves for all."""

    async def open(self) -> None:
        backend = self.backend
        await self._seat.open()
        self._partitions = await backend.topics.ensure(self.queue)
        await backend.given_up.open()
        await backend.admin.set_up_group(
            self._group,
            {
                "share.auto.offset.reset": "earliest",
                "share.delivery.count.limit": str(delivery_limit(backend.settings.max_attempts)),
                "share.record.lock.duration.ms": str(int(LOCK_S * 1000)),
                "errors.deadletterqueue.topic.name": backend.names.given_up,
            },
        )
        await self._seat.join()
        self._borrow()
        self._spawn(self._keep(), f"keep what is lent of {self.queue}")
        self._spawn(backend.delays.keep_moving(self.queue, self.owned), f"delayed messages of {self.queue}")

    def _spawn(self, coroutine: Coroutine[Any, Any, None], name: str) -> None:
        task = asyncio.get_running_loop().create_task(coroutine, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            log.error("task failed", extra={"task": task.get_name()}, exc_info=task.exception())

    async def reads(self, topic_id: str) -> None:
        await self._seat.reads(topic_id)

    def _borrow(self) -> None:
        self._lending = Lending(self.backend.options.sharer(self._group), self.topic, self._arrived)

    @property
    def _pool(self) -> Pool:
        return self._seat.pool

    @property
    def _loan(self) -> Lending:
        assert self._lending is not None
        return self._lending

    def _heard(self, word: Word, heard: Heard, is_mine: bool) -> None:
        """Who is there is all that a member of a share group wants of the log."""

    async def _keep(self) -> None:
        while True:
            await asyncio.sleep(_TICK_S)
            self._end_overdue()
            if self._loan.has_failed:
                self._borrow()
            try:
                if not self._seat.is_in or self._seat.has_lapsed:
                    await self._seat.join()
                await self._seat.look_after_others()
                self._seat.log.tidy()
                if min(self._pool.members, default="") == self._seat.name:
                    self.owned.update(range(self._partitions))
                    await self._bury_archived()
                else:
                    self.owned.clear()
            except BackendError as error:
                log.warning("cannot keep what is lent yet", extra={"queue": self.queue, "error": str(error)})
                await asyncio.sleep(_RETRY_S)

    def _end_overdue(self) -> None:
        for number, (until, left) in tuple(self._batches.items()):
            if lease_clock() > until:
                log.warning("the time is over for which messages were lent", extra={"queue": self.queue})
                del self._batches[number]
                self._ready = deque(fetched for fetched in self._ready if fetched.shard != number)
                self._owner.lost({number})
                self._spawn(self._let_go(left), f"let go of messages of {self.queue}")

    async def _let_go(self, left: set[At]) -> None:
        """They are with others by now, or soon; but the client gives nothing before it was told."""
        await self._loan.acknowledge((), tuple(left))

    # -- what comes

    def _arrived(self, batch: Sequence[KafkaMessage], since: float) -> None:
        if not self._closed:
            self._spawn(self._take_in(batch, since + LOCK_S - _MARGIN_S), f"take what is lent of {self.queue}")

    async def _take_in(self, batch: Sequence[KafkaMessage], until: float) -> None:
        """What a process died with may have been its killer: what was tried most often comes last, and runs alone."""
        tried: Mapping[str, int] = {}
        if any(message.delivery_count() > 1 for message in batch):
            tried = await self._tried_before()
        self._count += 1
        number = self._count
        self._batches[number] = until, {(message.partition(), message.offset()) for message in batch}
        last: list[tuple[int, Fetched]] = []
        for message in batch:
            before = message.delivery_count() - 1
            at = f"{message.partition()}:{message.offset()}"
            fetched = Fetched(number, at, number, record_of(message), stored_at(message), before, before)
            fetched.suspect = before > 0
            if at in tried:
                fetched.crashes = _RUNS_ALONE
                last.append((tried[at], fetched))
            else:
                self._ready.append(fetched)
        self._ready.extend(fetched for _, fetched in sorted(last, key=lambda one: one[0]))
        self.backend.not_before(stored_at(batch[-1]))
        self._news.set()

    def _tried_key(self, at: str) -> str:
        return f"tried/{self.queue}/{at}"

    async def _tried_before(self) -> Mapping[str, int]:
        """How often handlers of these have begun since they came again."""
        prefix = self._tried_key("")
        while True:
            try:
                found = await self.backend.catalogue.scan(prefix)
                return {key.removeprefix(prefix): int(entry.value) for key, entry in found.items()}
            except BackendError as error:
                log.warning("cannot take what is lent yet", extra={"queue": self.queue, "error": str(error)})
                await asyncio.sleep(_RETRY_S)

    def holds(self, fetched: Fetched) -> bool:
        batch = self._batches.get(fetched.shard)
        return batch is not None and lease_clock() < batch[0]

    async def fetch(
        self, limit: int, wait_s: float, *, lanes: int = 1_000, run: int = 1_000, starting: int = 0
    ) -> Sequence[Fetched]:
        self.backend.check_usable()
        loop = asyncio.get_running_loop()
        until = loop.time() + wait_s
        while not self._closed:
            self._news.clear()
            if self._ready:
                return [self._ready.popleft() for _ in range(min(limit, lanes, len(self._ready)))]
            try:
                with self._loan.wanting():
                    async with asyncio.timeout(until - loop.time()):
                        await self._news.wait()
            except TimeoutError:
                return ()
        return ()

    # -- outcomes

    async def start(self, batch: Sequence[Fetched]) -> Sequence[Fetched]:
        """Of those that were lent before it is remembered that a handler began: the brokers do not know that."""
        self.backend.check_usable()
        for fetched in batch:
            if fetched.suspect:
                key = self._tried_key(str(fetched.at))
                known = self.backend.catalogue.known(key)
                times = int(known.value or 0) + 1
                await self.backend.catalogue.put(key, str(times).encode(), known.version, _TRIED_S)
        return [fetched for fetched in batch if not self.holds(fetched)]

    async def settle(self, done: Sequence[Fetched], rest: Sequence[Unfinished] = ()) -> Sequence[Fetched]:
        self.backend.check_usable()
        every = [*done, *(outcome.fetched for outcome in rest)]
        refused = {id(fetched) for fetched in every if not self.holds(fetched)}
        dead = [outcome for outcome in rest if isinstance(outcome, Dead) and id(outcome.fetched) not in refused]
        if dead:
            await self.backend.letters.bury(self.queue, dead)
        finished = {_at(f): f for f in (*done, *(one.fetched for one in dead)) if id(f) not in refused}
        released: list[Fetched] = []
        for outcome in rest:
            if not isinstance(outcome, Dead) and id(outcome.fetched) not in refused:
                if isinstance(outcome, Again) and outcome.delay_s > 0:
                    self._release_later(outcome)
                else:
                    released.append(outcome.fetched)
        if finished:
            await self._say_finished(finished)
        lost = await self._acknowledge(list(finished.values()), released)
        return [fetched for fetched in every if id(fetched) in refused or _at(fetched) in lost]

    async def _acknowledge(self, finished: Sequence[Fetched], released: Sequence[Fetched]) -> set[At]:
        refused = await self._loan.acknowledge([_at(f) for f in finished], [_at(f) for f in released])
        for fetched in (*finished, *released):
            batch = self._batches.get(fetched.shard)
            if batch is not None:
                batch[1].discard(_at(fetched))
                if not batch[1]:
                    del self._batches[fetched.shard]
        return refused

    def _release_later(self, outcome: Again) -> None:
        """The brokers know of no delay: the message is kept for as long as it is lent, and then given back."""
        fetched = outcome.fetched
        delay_s = max(0.0, min(outcome.delay_s, self._batches[fetched.shard][0] - lease_clock() - _MARGIN_S))

        async def release() -> None:
            await asyncio.sleep(delay_s)
            if self.holds(fetched):
                await self._acknowledge((), (fetched,))

        self._spawn(release(), f"give back a message of {self.queue}")

    async def _say_finished(self, ats: Sequence[At] | dict[At, Fetched]) -> None:
        await self._seat.say(Word(self._seat.name, gaps=[(shard, offset, offset + 1) for shard, offset in ats]))

    # -- what the brokers gave up

    async def _bury_archived(self) -> None:
        """Lent too often: a process died with it each time, or gave it back. Read again with all that belongs to it."""
        waiting = self.backend.given_up.of(self.topic)
        while waiting:
            (shard, offset), times = waiting[0]
            if self._pool.is_fresh((shard, offset)):
                for message in await self.backend.reader.read(self.topic, shard, offset, offset, {offset}):
                    fetched = Fetched(0, f"{shard}:{offset}", 0, record_of(message), stored_at(message))
                    letter = Letter(
                        reason="crashed",
                        error=f"it was lent {times} times, and each process died with it or gave it back",
                        attempts=times,
                        first_at=fetched.stored_at,
                        worker="",
                    )
                    await self.backend.letters.bury(self.queue, [Dead(fetched, letter)])
                await self._say_finished([(shard, offset)])
            waiting.popleft()

    # -- ending

    def watermarks(self) -> dict[Place, int]:
        """Below these offsets all is finished."""
        return {(self.topic, number): self._pool.low(number) for number in range(self._partitions)}

    def abandon(self) -> None:
        self._closed = True
        self._seat.end()
        for task in self._tasks:
            task.cancel()

    async def stop(self) -> None:
        await self._leave(gives_back=False)

    async def _leave(self, *, gives_back: bool) -> None:
        self.abandon()
        self._news.set()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._lending is not None:
            await self._lending.close(gives_back=gives_back)

    async def close(self) -> None:
        if self._closed:
            return
        is_in = self._seat.is_in
        await self._leave(gives_back=True)
        self.backend.discard(self)
        self._seat.is_in = is_in
        await self._seat.leave()


def _at(fetched: Fetched) -> At:
    shard, _, offset = str(fetched.at).partition(":")
    return int(shard), int(offset)
