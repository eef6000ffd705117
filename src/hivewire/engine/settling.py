"""Storing outcomes: what comes together while one batch is on its way goes in the next."""

from __future__ import annotations

import asyncio
import logging
from abc import ABC, abstractmethod
from collections.abc import Sequence, Set
from functools import partial
from math import inf

from hivewire.backend import Consumer, Dead, Unfinished
from hivewire.engine.flag import Flag
from hivewire.engine.outage import Outage
from hivewire.engine.tasks import Tasks
from hivewire.errors import BackendError, Closed
from hivewire.record import Fetched
from hivewire.rules.backoff import Backoff

log = logging.getLogger(__name__)

_RETRY_S = 0.05
_LONGEST_RETRY_S = 1.0

_NONE: frozenset[int] = frozenset()

_Waiter = tuple[Fetched, asyncio.Future[bool]]
_Batch = tuple[Sequence[Fetched], Sequence[Unfinished], Sequence[_Waiter]]
_NOTHING: _Batch = ((), (), ())


class Book(ABC):
    """Whose outcomes they are."""

    __slots__ = ()

    @abstractmethod
    async def store(self, done: Sequence[Fetched], rest: Sequence[Unfinished]) -> Sequence[Fetched]:
        """Returns the records that were refused because the lease is lost."""

    @abstractmethod
    def stored(self, done: Sequence[Fetched], rest: Sequence[Unfinished], refused: Set[int]) -> None:
        """Told after each batch, with the identities of those that were refused."""


class Settling:
    """The outcomes of one inbox on their way to the store, in the order in which they were noted: `done`
    first, then `rest`, batch by batch. While nothing is on its way there is no task, and with a store that takes them
    directly there is none as long as all goes well: most agents wait most of the time."""

    __slots__ = (
        "_book", "_ended", "_hurried", "_idle", "_loop", "_outage", "_pause", "_queue", "_sent_at", "_storing",
        "_tasks", "_timer", "_under_way", "_waiting", "direct", "done", "pace_s", "rest",
    )  # fmt: skip

    def __init__(self, queue: str, book: Book, tasks: Tasks, *, pace_s: float = 0.0) -> None:
        """`pace_s`: so long after a batch was sent the next one waits for more, unless somebody waits for its end."""
        self._queue = queue
        self.pace_s = pace_s
        self._sent_at = -inf
        self._hurried = 0
        """How many wait until all is stored."""
        self._pause: asyncio.Future[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        """`_run_now` waits for more, as `_pause` in a task."""
        self._loop = asyncio.get_running_loop()
        self._outage: Outage | None = None
        self._book = book
        self.done: list[Fetched] = []
        self.rest: list[Unfinished] | tuple[()] = ()
        self._tasks = tasks
        self.direct: Consumer | None = None
        """Where no task is needed as long as all goes well."""
        self._storing = False
        self._ended = False
        """The inbox is closed, or its tasks were cancelled: nothing is stored any more."""
        self._idle: Flag | None = None
        """For those who wait until all is stored."""
        self._waiting: list[_Waiter] | tuple[()] = ()
        """Who waits for the end of an outcome that is in `done` or `rest`."""
        self._under_way: _Batch = _NOTHING
        """What is being stored, and who waits for it. One record may have an outcome here and in what comes next: a
        failed attempt, and the end of the next one."""

    def add(self, outcome: Unfinished) -> None:
        rest = self.rest = self.rest or []
        rest.append(outcome)
        self.wake()
        self._hasten()

    def wake(self) -> None:
        """Called by whoever adds the first of a batch."""
        if not (self._storing or self._ended or self._tasks.closed):
            self._storing = True
            if self.direct is None:
                self._tasks.start(self._run(), f"settle {self._queue}")
            else:
                self._loop.call_soon(self._run_now)

    def _run_now(self) -> None:
        """`_run` without a task: what goes wrong goes that other way."""
        assert self.direct is not None
        self._timer = None
        if self._tasks.closed or self._ended:
            self._end()
            return
        if self.pace_s and not (self._waiting or self.rest or self._hurried):
            now = self._loop.time()
            if now < self._sent_at + self.pace_s:
                self._timer = self._loop.call_at(self._sent_at + self.pace_s, self._run_now)
                return
            self._sent_at = now
        done, rest = self._take()
        try:
            if self.direct.instant:
                refused = self.direct.settle_now(done, rest)
            else:
                self.direct.settle_soon(done, rest).add_done_callback(partial(self._ran, done, rest))
                return
        except Exception:  # noqa: BLE001  # told there, where it is tried again
            self._run_after_all(done, rest)
            return
        self._told(done, rest, refused)

    def _take(self) -> tuple[list[Fetched], Sequence[Unfinished]]:
        """The next batch, with those who wait for it."""
        done, self.done = self.done, []
        rest, self.rest = self.rest, ()
        if rest and (done or len(rest) > 1):
            rest = _last_of_each(done, rest)
        self._under_way, self._waiting = (done, rest, self._waiting), ()
        return done, rest

    def _ran(self, done: list[Fetched], rest: Sequence[Unfinished], stored: asyncio.Future[Sequence[Fetched]]) -> None:
        if stored.cancelled() or stored.exception() is not None:
            self._run_after_all(done, rest)
        else:
            self._told(done, rest, stored.result())

    def _told(self, done: list[Fetched], rest: Sequence[Unfinished], refused: Sequence[Fetched]) -> None:
        self._tell(done, rest, {id(fetched) for fetched in refused} if refused else _NONE)
        if self.done or self.rest:
            self._run_now()
        else:
            self._is_idle()

    def _run_after_all(self, done: list[Fetched], rest: Sequence[Unfinished]) -> None:
        self.done, self.rest = done + self.done, [*rest, *self.rest]
        self._waiting, self._under_way = [*self._under_way[2], *self._waiting], _NOTHING
        if self._tasks.closed or self._ended:
            self._end()
        else:
            self._tasks.start(self._run(), f"settle {self._queue}")

    def _end(self) -> None:
        self._ended = True
        self._is_idle()

    def _is_idle(self) -> None:
        self._storing = False
        if self._idle is not None:
            self._idle.set()

    def expect(self, fetched: Fetched) -> asyncio.Future[bool]:
        """Done when the outcome of this record that is noted next, before anything else, is stored (True) or refused
        (False)."""
        waiter: asyncio.Future[bool] = self._loop.create_future()
        waiting = self._waiting = self._waiting or []
        waiting.append((fetched, waiter))
        self._hasten()
        return waiter

    async def _run(self) -> None:
        """Until nothing is left, or it is cancelled, or the inbox is closed."""
        try:
            while self.done or self.rest:
                if self.pace_s and not (self._waiting or self.rest or self._hurried):
                    await self._for_more()
                done, rest = self._take()
                refused = await self._keep_storing(done, rest)
                self._tell(done, rest, {id(fetched) for fetched in refused})
        except BaseException as error:
            self._ended = True
            if not isinstance(error, Closed):
                raise
        finally:
            self._is_idle()

    async def _for_more(self) -> None:
        """Who handles quickly stores many outcomes at once. After a pause the first one goes at once."""
        loop = asyncio.get_running_loop()
        left = self._sent_at + self.pace_s - loop.time()
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
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
            self._loop.call_soon(self._run_now)
        if self._pause is not None and not self._pause.done():
            self._pause.set_result(None)

    async def _keep_storing(self, done: Sequence[Fetched], rest: Sequence[Unfinished]) -> Sequence[Fetched]:
        backoff: Backoff | None = None
        while True:
            try:
                refused = await self._book.store(done, rest)
                if self._outage is not None:
                    self._outage.is_over()
                return refused
            except BackendError as error:
                # Kept until the store is back. Repeating is safe: what got through changes nothing the second time.
                self._outage = self._outage or Outage(log, "store outcomes", self._queue)
                self._outage.goes_on(error)
                backoff = backoff or Backoff(_RETRY_S, _LONGEST_RETRY_S)
                await asyncio.sleep(backoff.next_s())
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
        self._book.stored(done, rest, lost)
        (_, _, waiters), self._under_way = self._under_way, _NOTHING
        for fetched, waiter in waiters:
            if not waiter.done():
                waiter.set_result(id(fetched) not in lost)

    def unsettled(self) -> list[Fetched]:
        """What is at its end, but not known to be stored so."""
        done, rest, _ = self._under_way
        return [*done, *self.done, *(one.fetched for one in (*rest, *self.rest) if isinstance(one, Dead))]

    def noted(self) -> set[int]:
        """Of which records there are outcomes that go with the next batch, by the identity of what was fetched."""
        return {id(fetched) for fetched in (*self.done, *(outcome.fetched for outcome in self.rest))}

    async def flushed(self) -> None:
        """Until everything noted so far is stored, or will never be."""
        self._hurried += 1
        try:
            while self._storing or ((self.done or self.rest) and not self._ended):
                self.wake()
                self._hasten()
                idle = self._idle = self._idle or Flag()
                idle.clear()
                await idle.wait()
        finally:
            self._hurried -= 1

    def give_up(self) -> None:
        """Nothing more is stored: whoever waits is told so."""
        self._ended = True
        if self._timer is not None:
            self._timer.cancel()
        waiting, self._under_way, self._waiting = [*self._under_way[2], *self._waiting], _NOTHING, ()
        for _, waiter in waiting:
            if not waiter.done():
                waiter.set_result(False)


def _last_of_each(done: Sequence[Fetched], rest: list[Unfinished]) -> list[Unfinished]:
    """Of a record that failed, was tried again and came to its end since the last batch was taken, only the end counts:
    a failure stored after it would be that of a record which is gone."""
    ended = {id(fetched) for fetched in done}
    last = {id(outcome.fetched): outcome for outcome in rest}
    if not ended.isdisjoint(last) or len(last) < len(rest):
        rest = [one for one in rest if last[id(one.fetched)] is one and id(one.fetched) not in ended]
    return rest
