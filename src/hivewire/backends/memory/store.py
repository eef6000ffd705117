"""What all members in memory share: queues, dead letters, the catalogue, volatile channels."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from itertools import count

from hivewire.backend import DeadRecord, Entry, Fetched, Letter, QueueSpec
from hivewire.backends.memory.queue import Queue
from hivewire.rules.dedup import Window


class Listener:
    """One protocol's ear on a volatile channel. Keeps the newest 100,000 that were not read yet."""

    def __init__(self) -> None:
        self._unread: deque[bytes] = deque(maxlen=100_000)
        self._news = asyncio.Event()

    def hear(self, body: bytes) -> None:
        self._unread.append(body)
        self._news.set()

    async def heard(self, wait_s: float) -> Sequence[bytes]:
        if not self._unread:
            try:
                async with asyncio.timeout(wait_s):
                    await self._news.wait()
            except TimeoutError:
                return ()
        self._news.clear()
        found = list(self._unread)
        self._unread.clear()
        return found


class Store:
    """What all protocols of one name and event loop share."""

    def __init__(self, now: Callable[[], float], window_ids: int, window_s: float) -> None:
        self.now = now
        self.queues: dict[str, Queue] = {}
        self.dead: dict[int, DeadRecord] = {}
        self.catalogue: dict[str, tuple[Entry, float | None]] = {}
        self.epoch = 0
        self.channels: dict[str, set[Listener]] = {}
        self.users = 0
        self._tokens = count(1)
        self._dead_cursors = count(1)
        self._window = (window_ids, window_s)

    def queue(self, name: str, cap: int) -> Queue:
        """The queue; whoever names it first decides its cap."""
        queue = self.queues.get(name)
        if queue is None:
            spec = QueueSpec(name=name, cap=cap)
            queue = self.queues[name] = Queue(spec, self.now, self._tokens, Window(*self._window))
        return queue

    def bury(self, queue: str, fetched: Fetched, letter: Letter) -> None:
        cursor = next(self._dead_cursors)
        self.dead[cursor] = DeadRecord(
            cursor=f"{cursor:016d}", queue=queue, record=fetched.record, letter=letter, dead_at=self.now()
        )

    def pick_dead(self, queue: str | None, ids: Sequence[str] | None) -> list[int]:
        wanted = None if ids is None else set(ids)
        return [
            cursor
            for cursor, dead in self.dead.items()
            if (queue is None or dead.queue == queue) and (wanted is None or dead.record.id in wanted)
        ]
