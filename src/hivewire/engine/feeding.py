"""Taking from the store as much as a crew can soon handle."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from typing import Final

from hivewire.engine.inbox import Inbox
from hivewire.engine.outage import Outage
from hivewire.engine.slots import FETCH_LIMIT, Slots
from hivewire.engine.watching import Watch
from hivewire.errors import BackendError, Closed
from hivewire.record import Fetched

log = logging.getLogger(__name__)

_FETCH_WAIT_S: Final = 60.0
_FETCH_RETRY_S: Final = 0.1
_FEW: Final = 16
_TURNS_AFTER: Final = 2
"""Of the loop: in the first a handler runs, in the next who has its answer; then what both have sent is written."""


class Feeding:
    """A store that tells is asked by a callback; for another one a task waits.

    `over` is done when nothing more can be taken. Invariant: the store is asked for one batch at a time.
    """

    __slots__ = (
        "_hungry", "_inbox", "_is_asked", "_is_called", "_is_hungry", "_is_stopped", "_loop", "_outage", "_over",
        "_slots", "_task", "_watch",
    )  # fmt: skip

    def __init__(self, inbox: Inbox, slots: Slots, watch: Watch) -> None:
        self._inbox = inbox
        self._slots = slots
        self._watch = watch
        self._loop = asyncio.get_running_loop()
        self._task: asyncio.Task[None] | None = None
        self._over: asyncio.Future[None] | None = None
        self._outage: Outage | None = None
        self._is_stopped = False
        self._is_called = False
        """`_feed_now` is about to run."""
        self._is_asked = False
        """The store tells when there is more."""
        self._is_hungry = False
        """Nothing is asked for until a slot takes a lane."""
        self._hungry: asyncio.Future[None] | None = None
        """So the task waits."""

    def begin(self, over: asyncio.Future[None]) -> None:
        self._over = over
        if self._inbox.held.consumer.tells:
            self._soon()
        else:
            self._task = self._inbox.core.tasks.start(self._feed(), f"take {self._inbox.queue}")
            self._task.add_done_callback(self._is_over)

    def check(self) -> None:
        """Raises what ended the taking, if something did."""
        if self._task is not None and self._task.done() and not self._task.cancelled():
            self._task.result()

    def stop(self) -> None:
        self._is_stopped = True
        if self._task is not None:
            self._task.cancel()
        elif self._is_asked:
            self._inbox.ask_no_more()

    def _is_over(self, _: object = None) -> None:
        if self._over is not None and not self._over.done():
            self._over.set_result(None)

    def lane_taken(self) -> None:
        """By a slot: see whether more is to be taken."""
        self._slots.are_kept = False
        if self._is_hungry:
            self._is_hungry = False
            self._soon()
        hungry = self._hungry
        if hungry is not None and not hungry.done():
            hungry.set_result(None)

    # -- from a store that tells

    def news(self) -> None:
        self._is_asked = False
        self._soon()

    def came(self, batch: Sequence[Fetched], error: BaseException | None) -> None:
        self._is_asked = False
        if error is not None:
            self._failed(error)
        elif self._is_stopped:
            self._inbox.outcomes.turn_away(batch)
        else:
            try:
                self._take_in(batch, self._slots.free)
            except Exception as problem:  # noqa: BLE001  # told to whoever waits for the end, as a task's would be
                self._failed(problem)
            else:
                self._ask_for_more(len(batch))

    def _ask_for_more(self, came: int) -> None:
        """At once where much comes, so that the store works while it is handled, or where others want it, too. Else
        what came is handled first, and what is sent because of it leaves."""
        if came > _FEW or self._inbox.held.store_lanes:
            self._feed_now()
        else:
            self._in_turns(_TURNS_AFTER)

    def _soon(self) -> None:
        if not (self._is_called or self._is_stopped):
            self._is_called = True
            self._loop.call_soon(self._feed_now)

    def _in_turns(self, turns: int) -> None:
        if turns:
            self._loop.call_soon(self._in_turns, turns - 1)
        else:
            self._soon()

    def _feed_now(self) -> None:
        self._is_called = False
        while not (self._is_stopped or self._is_asked):
            free, ready, lanes = self._room()
            if lanes <= ready:
                self._is_hungry = True
                return
            try:
                batch, self._is_asked = self._inbox.fetch_now(
                    FETCH_LIMIT, lanes=lanes, run=FETCH_LIMIT, starting=max(free - ready, 0)
                )
                if batch or not self._is_asked:  # else it is not known yet whether the store is there
                    self._take_in(batch, free)
            except Exception as error:  # noqa: BLE001  # told to whoever waits for the end, as a task's would be
                self._failed(error)
                return

    def _failed(self, error: BaseException) -> None:
        if isinstance(error, Closed):
            self._is_over()
        elif isinstance(error, BackendError):
            self._out().goes_on(error)
            self._loop.call_later(_FETCH_RETRY_S, self._soon)
        elif self._over is not None and not self._over.done():
            self._over.set_exception(error)

    # -- from another one

    async def _feed(self) -> None:
        while not self._is_stopped:
            free, ready, lanes = self._room()
            if lanes <= ready:  # half is left: no need to ask for a few
                self._hungry = self._loop.create_future()
                await self._hungry
                continue
            try:
                batch = await self._inbox.fetch(
                    FETCH_LIMIT, _FETCH_WAIT_S, lanes=lanes, run=FETCH_LIMIT, starting=max(free - ready, 0)
                )
            except BackendError as error:
                self._out().goes_on(error)
                await asyncio.sleep(_FETCH_RETRY_S)
                continue
            except Closed:
                return
            self._take_in(batch, free)

    # -- from both

    def _out(self) -> Outage:
        if self._outage is None:
            self._outage = Outage(log, "take messages", self._inbox.queue)
        return self._outage

    def _room(self) -> tuple[int, int, int]:
        """Free slots, lanes that are ready, and how many are wanted in all."""
        free, ready = self._slots.free, len(self._inbox.held.lanes.ready)
        return free, ready, self._wanted(free, ready)

    def _wanted(self, free: int, ready: int) -> int:
        slots, held = self._slots, self._inbox.held
        if slots.are_kept:
            return 0
        if held.store_lanes:
            return slots.pace.lanes(slots.concurrency, free) - ready
        # Owned shards keep nothing from others: only memory bounds what is taken ahead.
        return FETCH_LIMIT if held.lanes.active < FETCH_LIMIT else 0

    def _take_in(self, batch: Sequence[Fetched], free: int) -> None:
        held = self._inbox.held
        if self._outage is not None:
            self._outage.is_over()
        if not batch:
            return
        self._inbox.take_in(batch)
        if held.taker is not None:
            held.taker.pushed()
        if held.store_lanes and len(held.lanes.ready) > free:
            self._watch.taken_ahead()
