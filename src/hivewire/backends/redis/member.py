"""What every member of a queue is, whatever the queue's mode: its place there, how it begins to leave and leaves."""

from __future__ import annotations

import logging
from abc import abstractmethod
from contextlib import AbstractAsyncContextManager
from typing import TYPE_CHECKING, ClassVar

from hivewire.backend import Consumer, QueueSpec
from hivewire.backends.redis import scripts
from hivewire.backends.redis.keeper import Seat
from hivewire.backends.redis.keys import Names
from hivewire.backends.redis.late import Late
from hivewire.backends.redis.link import good
from hivewire.backends.redis.reading import Held
from hivewire.backends.redis.standing import Standing
from hivewire.errors import BackendError

if TYPE_CHECKING:
    from hivewire.backends.redis.backend import RedisBackend

log = logging.getLogger(__name__)


class RedisMember(Consumer):
    """One member's part of one queue."""

    standing: Standing
    """Its lease, and what it holds by it."""
    _leave: ClassVar[str]
    """The script that gives all back."""

    def __init__(self, backend: RedisBackend, spec: QueueSpec, seat: Seat) -> None:
        self.backend = backend
        self.queue = spec.name
        self.names: Names = seat.names
        self.seat = seat
        self._late = Late(backend, self.names)
        self._closed = False

    @abstractmethod
    def _heard(self, what: bytes | None) -> None:
        """On the queue's channel of news; None: something may have been missed."""

    @abstractmethod
    async def begin(self) -> None:
        """Returns when the first heartbeat is answered."""

    @abstractmethod
    def rewind(self) -> None:
        """The connection was made anew, perhaps to a server that has undone what it had confirmed."""

    @abstractmethod
    def out(self) -> int:
        """Taken by this member, and not counted by the server."""

    @abstractmethod
    def taken(self) -> list[tuple[int, bytes]]:
        """Shard, or level, and id of what runs here or is about to."""

    @abstractmethod
    def still(self) -> AbstractAsyncContextManager[None]:
        """Nothing is taken while this lasts."""

    @abstractmethod
    def unread(self, shard: int, id: bytes) -> Held | None:
        """The shard, if it is owned here and the engine has not had this record: it may be taken away. A copy
        that lies ready is forgotten."""

    @abstractmethod
    async def _end(self) -> None:
        """Take nothing more."""

    def abandon(self) -> None:
        """As if the process was killed."""
        self._closed = True
        self.backend.keeper.remove(self.seat)

    async def stop(self) -> None:
        """End what runs here; say nothing to the server."""
        self._closed = True
        self.backend.hear_no_more(self.names.news, self._heard)
        await self._end()
        await self._late.stop()
        await self.standing.stop()

    async def close(self) -> None:
        if self._closed:
            return
        await self.stop()
        self.backend.forget(self)
        self.standing.forget()
        try:
            (answer,) = await self.backend.link.post([scripts.run(self._leave, self.names.base, self.seat.name)])
            good(answer, f"leave {self.queue}")
        except BackendError as error:
            log.warning("what was held could not be given back; it is free when the lease ends: %s", error)
