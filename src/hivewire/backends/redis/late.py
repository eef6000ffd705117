"""Delayed messages of one queue become plain ones when they fall due: whoever consumes it sees to that."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

from hivewire.backends.redis import scripts
from hivewire.backends.redis.keys import Names
from hivewire.backends.redis.link import good
from hivewire.errors import BackendError

if TYPE_CHECKING:
    from hivewire.backends.redis.backend import RedisBackend

log = logging.getLogger(__name__)

_AT_ONCE = 200
_AGAIN_S = 1.0
_MOST_WAIT_S = 3600.0


class Late:
    """One timer for the next message that falls due."""

    def __init__(self, backend: RedisBackend, names: Names) -> None:
        self._backend = backend
        self._names = names
        self._timer: asyncio.TimerHandle | None = None
        self._moving: asyncio.Task[None] | None = None
        self._stopped = False

    def due_in(self, seconds: float | None) -> None:
        """Look then; None: nothing is delayed."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if seconds is not None and not self._stopped:
            self._timer = asyncio.get_running_loop().call_later(min(seconds, _MOST_WAIT_S) + 0.001, self._due)

    def due_by(self, seconds: float) -> None:
        """Look then at the latest."""
        loop = asyncio.get_running_loop()
        if self._timer is None or self._timer.when() > loop.time() + seconds + 0.001:
            self.due_in(seconds)

    def _due(self) -> None:
        self._timer = None
        if self._moving is None:
            self._moving = asyncio.get_running_loop().create_task(self._move(), name=f"due {self._names.base}")
        else:
            self.due_in(0.01)

    async def _move(self) -> None:
        next_s: float | None = _AGAIN_S
        try:
            (answer,) = await self._backend.link.post([scripts.run(scripts.MOVE, self._names.base, _AT_ONCE)])
            next_ms = good(answer, "move delayed messages")
            next_s = None if next_ms < 0 else next_ms / 1000
        except BackendError as error:
            log.debug("cannot move delayed messages yet", extra={"queue": self._names.base, "error": str(error)})
        finally:
            self._moving = None
        self.due_in(next_s)

    async def stop(self) -> None:
        self._stopped = True
        self.due_in(None)
        if self._moving is not None:
            moving = self._moving
            moving.cancel()
            await asyncio.gather(moving, return_exceptions=True)
