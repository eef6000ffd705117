"""What the heartbeat says of one member, brought in force on the event loop."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import TYPE_CHECKING

from hivewire.backend import Ownership
from hivewire.backends.redis.keeper import Seat, Shares, lease_clock
from hivewire.errors import BackendError

if TYPE_CHECKING:
    from hivewire.backends.redis.backend import RedisBackend

log = logging.getLogger(__name__)

_RETRY_S = 0.05


class Standing(ABC):
    """One member of one queue. `news` is called when there may be something to read."""

    def __init__(
        self, backend: RedisBackend, queue: str, seat: Seat, owner: Ownership, news: Callable[[], None]
    ) -> None:
        self._backend = backend
        self.queue = queue
        self.seat = seat
        self._owner = owner
        self._news = news
        self._generation = 0
        self._answers: asyncio.Queue[Shares] = asyncio.Queue()
        self._applied = asyncio.Event()
        self._applying: asyncio.Task[None] | None = None
        self._stopped = False
        self.on_late: Callable[[float | None], None] | None = None

    async def begin(self) -> None:
        """Returns when the first answer is in force, or the server is too slow to wait for."""
        self.seat.tell = self._answers.put_nowait
        self._applying = asyncio.get_running_loop().create_task(self._apply_all(), name=f"own {self.seat.name}")
        self._backend.keeper.add(self.seat)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._backend.address.settings.dial_timeout_s):
                await self._applied.wait()

    async def stop(self) -> None:
        """Say nothing to the server."""
        self._stopped = True
        self.seat.tell = None
        self._backend.keeper.remove(self.seat)
        if self._applying is not None:
            self._applying.cancel()
            await asyncio.gather(self._applying, return_exceptions=True)

    def poke(self) -> None:
        self._backend.keeper.poke(self.seat)

    async def _apply_all(self) -> None:
        while True:
            shares = await self._answers.get()
            while True:
                try:
                    await self._accept(shares)
                    break
                except BackendError as error:
                    log.debug("cannot take over yet", extra={"member": self.seat.name, "error": str(error)})
                    await asyncio.sleep(_RETRY_S)
                    if not self._answers.empty():
                        break
            self._applied.set()

    async def _accept(self, shares: Shares) -> None:
        self._backend.clock.told(asked_at=shares.asked_at, store_now=shares.store_now, answered_at=shares.answered_at)
        if shares.generation != self._generation:
            self.lapsed()
            self._generation = shares.generation
        if shares.is_new:
            log.warning("the queue was deleted by somebody: what was in it is lost", extra={"queue": self.queue})
            await self._backend.declare(self._backend.sending.defaults(self.queue))
        await self._apply(shares)
        if self.on_late is not None:
            self.on_late(shares.next_late_s)

    @abstractmethod
    def lapsed(self) -> None:
        """The lease had run out: what was held is held no more."""

    @abstractmethod
    def forget(self) -> None:
        """All that is held: this member leaves."""

    @abstractmethod
    async def _apply(self, shares: Shares) -> None:
        """What is held now."""

    def in_time(self) -> bool:
        """Whether the lease is good by our own clock, and the one that all that is held was taken under."""
        if self.seat.until <= lease_clock():
            self.seat.doubted = True
            return False
        return self.seat.generation == self._generation
