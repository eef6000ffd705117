"""Storing outcomes: what comes together while one batch is on its way goes in the next."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence, Set
from math import inf

from hivewire.backend import Unfinished
from hivewire.engine.outage import Outage
from hivewire.errors import BackendError, Closed
from hivewire.record import Fetched

log = logging.getLogger(__name__)

_RETRY_S = 0.05

Store = Callable[[Sequence[Fetched], Sequence[Unfinished]], Awaitable[Sequence[Fetched]]]
"""Returns the records that were refused because the lease is lost."""
Stored = Callable[[Sequence[Fetched], Sequence[Unfinished], Set[int]], None]
"""Told after each batch, with the identities of those that were refused."""


class Settling:
    """The outcomes of one inbox on their way to the store, in the order in which they were noted: `done`
    first, then `rest`, batch by batch."""

    def __init__(self, queue: str, store: Store, stored: Stored, *, pace_s: float = 0.0) -> None:
        """`pace_s`: so long after a batch was sent the next one waits for more, unless somebody waits for its end."""
        self._queue = queue
        self._pace_s = pace_s
        self._sent_at = -inf
        self._hurried = 0
        """How many wait until all is stored."""
        self._pause: asyncio.Future[None] | None = None
        self._outage = Outage(log, "store outcomes", queue)
        self._store = store
        self._stored = stored
        self.done: list[Fetched] = []
        self.rest: list[Unfinished] = []
        self.wanted = asyncio.Event()
        """Set by whoever adds the first of a batch."""
        self._idle = asyncio.Event()
        self._idle.set()
        self._waiting: dict[int, asyncio.Future[bool]] = {}

    def add(self, outcome: Unfinished) -> None:
        self.rest.append(outcome)
        self.wanted.set()
        self._hasten()

    def expect(self, fetched: Fetched) -> asyncio.Future[bool]:
        """Done when the outcome of this record is stored (True) or refused (False)."""
        waiter = self._waiting[id(fetched)] = asyncio.get_running_loop().create_future()
        self._hasten()
        return waiter

    async def run(self) -> None:
        """Until it is cancelled or the inbox is closed."""
        while True:
            await self.wanted.wait()
            if self._pace_s and not (self._waiting or self.rest or self._hurried):
                await self._for_more()
            self.wanted.clear()
            self._idle.clear()
            done, self.done = self.done, []
            rest, self.rest = self.rest, []
            if done or rest:
                try:
                    refused = await self._keep_storing(done, rest)
                except Closed:
                    return
                self._tell(done, rest, {id(fetched) for fetched in refused})
            if not self.done and not self.rest:
                self._idle.set()

    async def _for_more(self) -> None:
        """Who handles quickly stores many outcomes at once. After a pause the first one goes at once."""
        loop = asyncio.get_running_loop()
        left = self._sent_at + self._pace_s - loop.time()
        if left > 0:
            self._pause = loop.create_future()
            timer = loop.call_later(left, self._hasten)
            try:
                await self._pause
            finally:
                timer.cancel()
                self._pause = None
        self._sent_at = loop.time()

    def _hasten(self) -> None:
        if self._pause is not None and not self._pause.done():
            self._pause.set_result(None)

    async def _keep_storing(self, done: Sequence[Fetched], rest: Sequence[Unfinished]) -> Sequence[Fetched]:
        while True:
            try:
                refused = await self._store(done, rest)
                self._outage.is_over()
                return refused
            except BackendError as error:
                # Kept until the store is back. Repeating is safe: what got through is refused the second time.
                self._outage.goes_on(error)
                await asyncio.sleep(_RETRY_S)
            except Closed:
                raise
            except Exception as error:  # noqa: BLE001  # one outcome that cannot be stored must not stop all others
                return await self._one_by_one(done, rest, error)

    async def _one_by_one(
        self, done: Sequence[Fetched], rest: Sequence[Unfinished], error: Exception
    ) -> Sequence[Fetched]:
        if len(done) + len(rest) == 1:
            log.error("an outcome cannot be stored; the lease runs out", extra={"queue": self._queue}, exc_info=error)
            return [*done, *(outcome.fetched for outcome in rest)]
        refused: list[Fetched] = []
        for fetched in done:
            refused.extend(await self._keep_storing((fetched,), ()))
        for outcome in rest:
            refused.extend(await self._keep_storing((), (outcome,)))
        return refused

    def _tell(self, done: Sequence[Fetched], rest: Sequence[Unfinished], lost: Set[int]) -> None:
        self._stored(done, rest, lost)
        if not self._waiting:
            return
        for fetched in [*done, *(outcome.fetched for outcome in rest)]:
            waiter = self._waiting.pop(id(fetched), None)
            if waiter is not None and not waiter.done():
                waiter.set_result(id(fetched) not in lost)

    async def flushed(self) -> None:
        """Until everything noted so far is stored."""
        self._hurried += 1
        try:
            while self.done or self.rest or not self._idle.is_set():
                self._idle.clear()
                self.wanted.set()
                self._hasten()
                await self._idle.wait()
        finally:
            self._hurried -= 1

    def give_up(self) -> None:
        """Nothing more is stored: whoever waits is told so."""
        for waiter in self._waiting.values():
            if not waiter.done():
                waiter.set_result(False)
        self._waiting.clear()
