"""One attempt to handle one message."""

from __future__ import annotations

from abc import ABC, abstractmethod
from types import TracebackType

from hivewire.errors import LeaseLost, Reject, RetryAfter
from hivewire.message import Message


class Delivery(ABC):
    """One attempt to handle one message. Exactly one of ack, nack and reject takes effect.

    Used with `async with`: leaving normally acks, raising nacks by the retry policy and goes on raising,
    but for `RetryAfter` and `Reject`, which are signals and stop here. A bare delivery lasts the lease;
    inside `async with` it is renewed up to the handler's time limit.
    """

    __slots__ = ()

    @property
    @abstractmethod
    def message(self) -> Message: ...

    @property
    @abstractmethod
    def attempt(self) -> int:
        """Starts of a handler for this message, this one included, crashes counted."""

    @abstractmethod
    async def ack(self) -> None:
        """Handled: returns when that is stored. Raises `LeaseLost` or `AlreadySettled`."""

    @abstractmethod
    async def nack(self, delay_s: float | None = None, *, error: BaseException | None = None) -> None:
        """Failed: again after `delay_s`, or when the retry policy says (None); dead after `max_attempts`."""

    @abstractmethod
    async def reject(self, reason: str) -> None:
        """To the dead letters, no retry."""

    @abstractmethod
    async def extend(self) -> None:
        """Start the lease of this delivery anew. Raises `LeaseLost` when it is too late."""

    @property
    @abstractmethod
    def settled(self) -> bool: ...

    @property
    @abstractmethod
    def replay(self) -> int:
        """How often the message was replayed from the dead letters."""

    @abstractmethod
    def next_output(self, to: str, type: str) -> int:
        """The running number of this handler's outputs to one recipient of one type, from 0."""

    @abstractmethod
    def _hold(self) -> None:
        """Renew from now on, up to the handler's time limit."""

    async def __aenter__(self) -> Delivery:
        self._hold()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        if self.settled:
            return False
        if error is None:
            await self.ack()
            return False
        try:
            if isinstance(error, Reject):
                await self.reject(error.reason)
                return True
            if isinstance(error, RetryAfter):
                await self.nack(delay_s=error.delay_s, error=error)
                return True
            await self.nack(error=error)
        except LeaseLost:
            pass  # somebody else has it by now: the handler's own error matters more
        return False
