"""One member's view of one queue in memory: waiting, waking, and what it holds."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import TYPE_CHECKING

from hivewire.backend import Again, Consumer, Dead, Fetched, Member, Ownership, Unfinished, life
from hivewire.backends.memory.queue import Holder, Queue
from hivewire.errors import Closed

if TYPE_CHECKING:
    from hivewire.backends.memory.backend import MemoryBackend


class MemoryConsumer(Consumer):
    tells = instant = True
    __slots__ = (
        "_backend", "_closed", "_loop", "_owner", "_queue", "_store", "_timer", "_waiter", "_wants_news",
        "holder", "member",
    )  # fmt: skip

    def __init__(self, backend: MemoryBackend, queue: Queue, member: Member, owner: Ownership) -> None:
        self._backend = backend
        self._queue = queue
        self._store = backend.store
        self._owner = owner
        self.member = member
        self.holder = Holder(member.name)
        self._waiter: asyncio.Future[None] | None = None
        self._wants_news = False
        self._timer: asyncio.TimerHandle | None = None
        self._loop = asyncio.get_running_loop()
        self._closed = False
        queue.readers.append(self)

    def wake(self) -> None:
        waiter = self._waiter
        if waiter is not None and not waiter.done():
            waiter.set_result(None)
        if self._wants_news:
            self._wants_news = False
            self._owner.news()

    def fetch_now(self, limit: int, *, lanes: int, run: int, starting: int) -> tuple[Sequence[Fetched], bool]:
        if self._closed:
            raise self._is_closed()
        self._disarm()
        queue, now = self._queue, self._store.now()
        queue.advance(now)
        taken: Sequence[Fetched] = ()
        if queue.ready:
            taken = queue.take(self.holder, limit, lanes, run, starting)
            if taken:
                self._backend.epoch = self._store.epoch
                if queue.ready:
                    return taken, False
        self._wants_news = True
        due = queue.next_due()
        if due is not None:
            self._timer = self._loop.call_later(max(due - now, 0.0), self.wake)
        return taken, True

    def _disarm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _is_closed(self) -> Closed:
        return Closed(f"fetch from {self._queue.spec.name}: this consumer was closed")

    async def fetch(
        self, limit: int, wait_s: float, *, lanes: int = 1_000, run: int = 1_000, starting: int = 0
    ) -> Sequence[Fetched]:
        deadline = self._loop.time() + wait_s
        queue = self._queue
        while not self._closed:
            now = self._store.now()
            queue.advance(now)
            if queue.ready:
                taken = queue.take(self.holder, limit, lanes, run, starting)
                if taken:
                    self._backend.epoch = self._store.epoch
                    return taken
            left = deadline - self._loop.time()
            if left <= 0:
                break
            due = queue.next_due()
            if due is not None:
                left = min(left, max(due - now, 0.0))
            await self._wait(left)
        if self._closed:
            raise self._is_closed()
        return ()

    async def _wait(self, seconds: float) -> None:
        self._waiter = self._loop.create_future()
        timer = self._loop.call_later(seconds, self.wake)
        try:
            await self._waiter
        finally:
            timer.cancel()
            self._waiter = None

    async def start(self, batch: Sequence[Fetched]) -> Sequence[Fetched]:
        refused = []
        for fetched in batch:
            lane = self._queue.held(self.holder, fetched)
            if lane is None or not lane.has_taken(fetched):
                refused.append(fetched)
            else:
                lane.running = fetched
        return refused

    async def settle(self, done: Sequence[Fetched], rest: Sequence[Unfinished] = ()) -> Sequence[Fetched]:
        return self.settle_now(done, rest)

    def settle_now(self, done: Sequence[Fetched], rest: Sequence[Unfinished] = ()) -> Sequence[Fetched]:
        queue, holder = self._queue, self.holder
        refused: list[Fetched] = []
        settled = queue.settled
        now = self._store.now()
        if done:
            queue.finish(holder, done, now, refused)
        for outcome in rest:
            fetched = outcome.fetched
            lane = queue.held(holder, fetched)
            if lane is None:
                refused.append(fetched)
            elif isinstance(outcome, Dead):
                queue.pop(lane, fetched)
                settled.add(life(fetched.record), now)
                self._store.bury(queue.spec.name, fetched, outcome.letter)
            else:
                fetched.marked = False
                fetched.suspect = fetched.suspect and not isinstance(outcome, Again)
                queue.put_back(lane, fetched, now + outcome.delay_s if isinstance(outcome, Again) else None)
        return refused

    def abandon(self) -> None:
        """Stop renewing, as a killed process would; the lease runs out."""
        self.holder.lease_until = self._store.now() + self.member.lease_s
        self._queue.forget(self)
        self._closed = True
        self._disarm()
        self.wake()
        self._loop.call_later(self.member.lease_s, self._died)

    def _died(self) -> None:
        self._queue.died(self.holder)
        self._owner.lost({0})

    async def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        self._disarm()
        self._queue.forget(self)
        self.wake()
        for lane in self.holder.held():
            self._queue.in_flight -= lane.taken
            for fetched in lane.records:
                fetched.marked = False
            self._queue.release(lane)
        self._backend.consumers.discard(self)
