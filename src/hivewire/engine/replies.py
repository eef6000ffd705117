"""Request and reply: a mailbox of this process, and who waits for what."""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress

from hivewire.backend import QueueSpec
from hivewire.delivery import Delivery
from hivewire.engine.admission import AllTypes
from hivewire.engine.core import Core
from hivewire.engine.crew import Crew
from hivewire.engine.inbox import Inbox
from hivewire.engine.outage import Outage, keep_trying
from hivewire.errors import BackendError, Closed, HivewireError, MessageError, TimedOut
from hivewire.ids import new_id
from hivewire.message import PROGRESS, REPLY_PREFIX, Message

log = logging.getLogger(__name__)

_SETTLE_PACE_S = 0.1
"""Where outcomes wait for more at all, those of a mailbox may wait long: it ends with its process."""


class Replies:
    """Made with the first request; its queue goes with this object."""

    def __init__(self, core: Core) -> None:
        self._core = core
        self.address = REPLY_PREFIX + new_id()
        self._waiting: dict[str, asyncio.Future[Message]] = {}
        self._inbox: Inbox | None = None
        self._opened: asyncio.Future[None] | None = None
        """Of the first requests, which wait for it together."""

    async def open(self, message_id: str, timeout_s: float) -> None:
        if self._inbox is not None:
            return
        opened = self._opened
        if opened is None:
            opened = self._opened = asyncio.get_running_loop().create_future()
            self._core.tasks.start(self._keep_opening(opened), "open the mailbox")
        try:
            async with asyncio.timeout(timeout_s):
                await asyncio.shield(opened)
        except TimeoutError:
            text = f"request {message_id}: there was no mailbox for its reply within {timeout_s:g} s"
            raise TimedOut(f"{text}; the store is away") from None

    async def _keep_opening(self, opened: asyncio.Future[None]) -> None:
        outcome: HivewireError | None = Closed("request: the protocol was closed before it was sent")
        try:
            await keep_trying(Outage(log, "open the mailbox", self.address), self._open)
            outcome = None
        except HivewireError as error:
            self._opened, outcome = None, error
        except Exception as error:  # noqa: BLE001  # told to those who wait for it
            self._opened, outcome = (
                None,
                BackendError(f"request: the mailbox for its reply cannot be opened: {error!r}"),
            )
            outcome.__cause__ = error
        finally:
            if outcome is None:
                opened.set_result(None)
            else:
                opened.set_exception(outcome)
                opened.exception()  # nobody may wait any more

    async def _open(self) -> None:
        await self._core.backend.declare(QueueSpec(name=self.address, mode="competing", shards=1))
        inbox = Inbox(self._core, self.address, AllTypes(), competing=True)
        settling = inbox.outcomes.settling
        if settling.pace_s:
            settling.pace_s = _SETTLE_PACE_S
        try:
            await inbox.start()
        except BaseException:
            await inbox.close()
            raise
        crew = Crew(inbox, self._arrived, concurrency=1, timeout_s=60.0)
        self._core.tasks.start(crew.run(), "replies")
        self._inbox = inbox

    def expect(self, message_id: str) -> asyncio.Future[Message]:
        if message_id in self._waiting:
            raise MessageError(f"request {message_id}: the same message is waiting for its reply already")
        waiter: asyncio.Future[Message] = asyncio.get_running_loop().create_future()
        self._waiting[message_id] = waiter
        return waiter

    async def wait(self, message_id: str, waiter: asyncio.Future[Message], left_s: float, timeout_s: float) -> Message:
        """`left_s` is what sending has left of `timeout_s`."""

        def too_late() -> None:
            if not waiter.done():
                waiter.set_exception(TimedOut(f"request {message_id}: no reply within {timeout_s:g} s"))

        timer = asyncio.get_running_loop().call_later(left_s, too_late)
        try:
            return await waiter
        finally:
            timer.cancel()
            self._waiting.pop(message_id, None)

    def forget(self, message_id: str) -> None:
        self._waiting.pop(message_id, None)

    async def _arrived(self, delivery: Delivery) -> None:
        self.arrived(delivery.message)

    def arrived(self, message: Message) -> None:
        """For whoever waits for it; too late, it is counted."""
        if message.metadata.get(PROGRESS):
            return  # of a handler that is still at work; nobody follows it here
        waiter = self._waiting.get(message.in_reply_to or "")
        if waiter is None or waiter.done():
            self._core.metrics.late_replies += 1
        else:
            waiter.set_result(message)

    async def close(self) -> None:
        for waiter in self._waiting.values():
            if not waiter.done():
                waiter.set_exception(Closed("request: the protocol was closed before the reply came"))
        if self._inbox is not None:
            inbox, self._inbox = self._inbox, None
            with suppress(BackendError):  # the mailbox goes with this member's lease
                await inbox.close()
            await self._core.backend.drop_queue(self.address)
