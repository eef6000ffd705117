"""What all parts of one protocol object share."""

from __future__ import annotations

import asyncio
import os
import random
import socket
from contextvars import ContextVar
from typing import Protocol

import msgspec

from hivewire.backend import Backend, Features, Letter, Member, Mode, QueueSpec
from hivewire.blobs import BlobStore
from hivewire.delivery import Delivery
from hivewire.engine.claims import Claims
from hivewire.engine.middleware import Middleware, chain
from hivewire.engine.tasks import Tasks
from hivewire.engine.trail import Notes, Trail
from hivewire.message import UNORDERED, Message
from hivewire.protocol import ProtocolMetrics
from hivewire.record import Fetched
from hivewire.rules.retry import Retry
from hivewire.settings import Settings

_MOST_ERROR = 65_536


def lane_key(message: Message, instance: str | None) -> str:
    """What is handled in order: the instance, else the message's key, else its sender."""
    key = instance or message.key or message.sender
    return message.id if key == UNORDERED else key


handling: ContextVar[HasDelivery | None] = ContextVar("hivewire_handling", default=None)
"""Set inside a handler: its sends have a reserve above a queue's cap, its replies derived ids."""


class HasDelivery(Protocol):
    """Where the delivery that is being handled is found."""

    @property
    def delivery(self) -> Delivery | None: ...


class Core:
    """Backend, settings, counters, tasks, and who may run."""

    def __init__(
        self,
        settings: Settings,
        backend: Backend,
        rng: random.Random,
        incoming: tuple[Middleware, ...],
        blobs: BlobStore | None = None,
    ) -> None:
        self.settings = settings
        self.backend = backend
        self.rng = rng
        self.metrics = ProtocolMetrics()
        self.tasks = Tasks()
        self.floor = Floor()
        self.worker = settings.worker_name or f"{socket.gethostname()}:{os.getpid()}"
        self.claims = None if blobs is None else Claims(blobs, settings.claim_check_bytes, self.tasks.start)
        self.trail = Trail(backend, settings, self.worker)
        self.retry = Retry(
            max_attempts=settings.max_attempts, first_s=settings.retry_first_s, most_s=settings.retry_most_s
        )
        self.incoming = chain(incoming) if incoming else None
        self.takes_no_more = False
        """The protocol is closing and has drained: nobody begins to consume."""

    @property
    def features(self) -> Features:
        return self.backend.features

    def spec(self, queue: str, mode: Mode | None = None) -> QueueSpec:
        spec = QueueSpec(name=queue, mode=mode, shards=self.settings.shards)
        cap = self.settings.queue_cap
        return spec if cap is None else msgspec.structs.replace(spec, cap=cap)

    def notes(self, queue: str) -> Notes | None:
        return Notes(self.trail, queue) if self.trail.on and not queue.startswith("~") else None

    def member(self) -> Member:
        return Member(name=self.worker, lease_s=self.settings.lease_s)

    def letter(self, fetched: Fetched, reason: str, error: str) -> Letter:
        return Letter(
            reason=reason,
            error=_kept(str(error)).encode("utf-8", "backslashreplace").decode(),
            attempts=fetched.starts,
            first_at=fetched.stored_at,
            worker=self.worker,
        )


def _kept(error: str) -> str:
    """Both ends of it: an error may have any length, a record of a store may not."""
    left_out = len(error) - _MOST_ERROR
    if left_out <= 0:
        return error
    half = _MOST_ERROR // 2
    return f"{error[:half]}\n... {left_out} characters are left out ...\n{error[-half:]}"


class Floor:
    """Who runs in this process. A record that may kill its process gets the floor for itself."""

    def __init__(self) -> None:
        self.running = 0
        self.alone = False
        self._holder: object = None
        self._changed = asyncio.Event()

    def enter(self) -> None:
        self.running += 1

    def leave(self) -> None:
        self.running -= 1
        self.changed()

    def changed(self) -> None:
        self._changed.set()

    async def wait(self) -> None:
        """Until nobody has or wants the floor alone."""
        while self.alone:
            self._changed.clear()
            await self._changed.wait()

    async def take(self, holder: object) -> None:
        """Wait until nothing else runs; starts of others wait until the holder has left."""
        await self.wait()
        self.alone, self._holder = True, holder
        try:
            while self.running:
                self._changed.clear()
                await self._changed.wait()
        except BaseException:
            self.left(holder)
            raise

    def left(self, who: object) -> None:
        """Something does not run any more; if it had the floor alone, it is everybody's again."""
        if self._holder is who:
            self.alone, self._holder = False, None
        self._changed.set()
