"""A delivery as the engine hands it out."""

from __future__ import annotations

from contextlib import suppress
from contextvars import Token
from math import inf
from typing import TYPE_CHECKING

from hivewire.delivery import Delivery
from hivewire.engine.core import HasDelivery, handling
from hivewire.errors import AlreadySettled, LeaseLost, duration_s
from hivewire.message import Message
from hivewire.record import Fetched
from hivewire.rules.lanes import Lane

if TYPE_CHECKING:
    from types import TracebackType

    from hivewire.engine.inbox import Inbox

OPEN, SETTLED, LOST = 0, 1, 2


class EngineDelivery(Delivery):
    __slots__ = (
        "_handling",
        "_inbox",
        "attempt",
        "expires_at",
        "fetched",
        "held",
        "lane",
        "message",
        "outputs",
        "state",
    )

    def __init__(self, inbox: Inbox, lane: Lane, fetched: Fetched, message: Message) -> None:
        self._inbox = inbox
        self.message: Message = message
        self.attempt: int = fetched.starts
        self.lane = lane
        self.fetched = fetched
        self.state = OPEN
        self.held = False
        self.expires_at: float
        """When nobody settles it: told by `extend`."""
        self.outputs: dict[tuple[str, str], int] | None = None
        self._handling: Token[HasDelivery | None] | None = None

    @property
    def settled(self) -> bool:
        return self.state == SETTLED

    @property
    def replay(self) -> int:
        return self.fetched.record.replay

    def change(self, message: Message) -> None:
        """Middleware has replaced the message."""
        self.message = message

    def next_output(self, to: str, type: str) -> int:
        """The running number of this handler's outputs to one recipient of one type."""
        if self.outputs is None:
            self.outputs = {}
        number = self.outputs.get((to, type), 0)
        self.outputs[to, type] = number + 1
        return number

    def _claim(self, doing: str) -> None:
        """Exactly one settlement gets past here."""
        if self.state == SETTLED:
            raise AlreadySettled(f"{doing} {self.message.id}: it was settled before")
        if self.state == LOST or self.lane.lost:
            self.state = LOST
            raise LeaseLost(f"{doing} {self.message.id}: the lease ended; it may be with another worker")
        self.state = SETTLED

    async def ack(self) -> None:
        self._claim("ack")
        await self._inbox.handed.ack(self)

    async def nack(self, delay_s: float | None = None, *, error: BaseException | None = None) -> None:
        if delay_s is not None:
            delay_s = duration_s(delay_s, "delay_s")
        self._claim("nack")
        await self._inbox.handed.nack(self, delay_s, error)

    async def reject(self, reason: str) -> None:
        self._claim("reject")
        await self._inbox.handed.reject(self, reason)

    async def extend(self) -> None:
        if self.state == SETTLED:
            raise AlreadySettled(f"extend {self.message.id}: it was settled before")
        if self.state == LOST or self.lane.lost:
            raise LeaseLost(f"extend {self.message.id}: the lease ended; it may be with another worker")
        self._inbox.handed.extend(self)

    def _hold(self) -> None:
        self.held = True
        self._inbox.handed.extend(self)
        self._handling = handling.set(self)

    @property
    def delivery(self) -> EngineDelivery:
        return self

    def keep_for_later(self) -> None:
        """Taken ahead: its lease is renewed until it is begun."""
        self.expires_at = inf

    def begin(self) -> None:
        self._inbox.handed.extend(self)

    def give_up(self) -> None:
        """Taken ahead and never begun: it does not count."""
        if self.state == OPEN:
            self.state = LOST
            self._inbox.handed.give_up(self)

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        if self._handling is not None:
            with suppress(ValueError):  # entered in another task: this one's context never had it
                handling.reset(self._handling)
            self._handling = None
        return await super().__aexit__(kind, error, trace)
