"""All that exists while a protocol is open."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from itertools import count
from typing import Final

from hivewire.backend import Backend, Features
from hivewire.blobs import BlobStore
from hivewire.engine import looking
from hivewire.engine.consumers import Consumers
from hivewire.engine.core import Core
from hivewire.engine.groups import Groups
from hivewire.engine.middleware import Middleware
from hivewire.engine.outgoing import Outgoing
from hivewire.engine.replies import Replies
from hivewire.engine.schedules import Schedules, Send
from hivewire.engine.sender import Sender
from hivewire.engine.subscriptions import Subscriptions
from hivewire.engine.volatile import Volatile
from hivewire.errors import BackendError, SettingsError
from hivewire.protocol import ProtocolMetrics
from hivewire.settings import Settings

log = logging.getLogger(__name__)

_STEP_S: Final = 10.0
"""Of closing: what does not end by then is left behind."""
_MAINTENANCE_S: Final = 1.0
_CLEANUP_EACH: Final = 60
_SWEEP_EACH: Final = 3_600


def check_durable(settings: Settings, features: Features) -> None:
    """Raises `SettingsError` where more is asked of the store than it has."""
    durability = features.durability
    if settings.require_durable and durability in ("volatile", "unknown"):
        found = "does not tell whether it keeps messages" if durability == "unknown" else "keeps them in memory only"
        raise SettingsError(
            f"require_durable is set, but this store {found}; use sqlite://, or a server that keeps what it"
            " is sent (Redis: --appendonly yes)"
        )


class Opened:
    """The parts of the engine, from the connection to the store until `shut` or `abandon`."""

    def __init__(
        self,
        settings: Settings,
        backend: Backend,
        rng: random.Random,
        middleware: tuple[Sequence[Middleware], Sequence[Middleware]],
        blobs: BlobStore | None,
        send: Send,
    ) -> None:
        """`middleware`: on the way out, and on the way in. `send`: of the protocol, for what is due by a schedule."""
        outgoing, incoming = middleware
        self.core = core = Core(settings, backend, rng, tuple(incoming), blobs)
        self.subscriptions = Subscriptions(backend)
        self.groups = Groups(core, self.subscriptions)
        self.volatile = Volatile(core, self.subscriptions)
        self.consumers = Consumers(core, self.subscriptions, self.groups, self.volatile)
        self.replies = Replies(core)
        self.sender = Sender(core)
        self.outgoing = Outgoing(core, self.sender, self.replies, self.consumers, outgoing)
        self.schedules = Schedules(core, send)
        core.tasks.start(self._maintain(), "maintenance")
        core.tasks.start(self.schedules.run(), "schedules")

    async def _maintain(self) -> None:
        """Now and then: expired messages to the dead letters, old traces forgotten."""
        core = self.core
        for turn in count(1):
            await asyncio.sleep(_MAINTENANCE_S)
            try:
                await core.trail.flush()
                await self.bury_expired()
                if turn % _CLEANUP_EACH == 0:
                    await self.tidy()
                if turn % _SWEEP_EACH == 0 and core.claims is not None:
                    await core.claims.sweep(core.backend)
            except (BackendError, OSError):
                continue  # `health` tells; the next round tries again

    async def tidy(self) -> None:
        """What has outlived its own window or time is forgotten, nothing else."""
        await self.core.backend.cleanup(None)
        await self.core.trail.trim()
        await looking.purge_old(self.core)

    async def bury_expired(self, queue: str | None = None) -> None:
        if self.core.features.finds_expired:
            buried = await self.core.backend.bury_expired(queue)
            self.core.metrics.expired += buried
            self.core.metrics.dead += buried

    def metrics(self) -> ProtocolMetrics:
        core = self.core
        core.metrics.in_flight = core.floor.running
        core.metrics.trail_dropped = core.trail.dropped
        core.metrics.lost = core.backend.lost
        core.metrics.paused = core.backend.paused()
        return core.metrics

    async def shut(self, drain_s: float) -> None:
        bounded: tuple[Callable[[], Awaitable[None]], ...] = (
            partial(self.sender.drain, drain_s),
            partial(self.consumers.close, drain_s),
        )
        steps: tuple[Callable[[], Awaitable[None]], ...] = (
            self.groups.close,
            self.volatile.close,
            self.replies.close,
            self.core.trail.flush,
            self.core.tasks.close,
            self._close_blobs,
            self.core.backend.close,
        )
        for step in (*bounded, *steps):
            try:
                async with asyncio.timeout(None if step in bounded else _STEP_S):
                    await step()
            except TimeoutError:
                log.warning("closing goes on without a part that does not end", extra={"after_s": _STEP_S})
            except (BackendError, OSError) as error:  # the store is away: leases run out by themselves
                log.warning("closing without the store", extra={"error": str(error)})

    async def abandon(self) -> None:
        """As if this process was killed: nothing is settled or given back."""
        await self.core.tasks.close()
        await self._close_blobs()
        await self.core.backend.close()

    async def _close_blobs(self) -> None:
        if self.core.claims is not None:
            await self.core.claims.close()
