"""Membership in a pool of the log of claims: a name, a lease, and an eye on the others.

Invariants: a name is used once; what is said under a name that was buried changes nothing; nobody is accused by a
member that was itself without the broker within the last lease.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Final
from uuid import uuid4

from hivewire.backends.kafka.claims import ClaimsLog, pack_word
from hivewire.errors import BackendError
from hivewire.rules.pool import Pool
from hivewire.rules.words import Heard, Word

if TYPE_CHECKING:
    from hivewire.backends.kafka.backend import KafkaBackend

log = logging.getLogger(__name__)

_MARGIN_S: Final = 0.2
_clock = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)
Listener = Callable[[Word, Heard, bool], None]
"""Told of each word of the pool, in the order of the log, what came of it, and whether it is this member's."""


def lease_clock() -> float:
    """Goes on while the machine sleeps."""
    return time.clock_gettime(_clock)


class Seat:
    """`until`: so long nobody takes anything from this member, by its own clock."""

    def __init__(self, backend: KafkaBackend, queue: str, topic: str, listener: Listener) -> None:
        self._backend = backend
        self.queue = queue
        self._topic = topic
        """In which the messages lie."""
        self._lease_s = backend.settings.lease_s
        self._listener = listener
        self._log: ClaimsLog | None = None
        self.name = ""
        self.token = 0
        """Another one with each name."""
        self.is_in = False
        self._until = 0.0
        self._steady_since = 0.0
        self._is_beating = False
        self._last_heard: dict[str, float] = {}

    @property
    def log(self) -> ClaimsLog:
        assert self._log is not None
        return self._log

    @property
    def pool(self) -> Pool:
        return self.log.pool(self.queue)

    async def open(self) -> Pool:
        """Read the log up to now."""
        self._log = await self._backend.claims.log_of(self.queue)
        return self.pool

    async def join(self) -> None:
        """Under a name that was never used."""
        seats = self.log.seats.setdefault(self.queue, {})
        seats.pop(self.name, None)
        self.token += 1
        self.name = f"{self._backend.client_id}/{uuid4().hex[:12]}"
        seats[self.name] = self
        topic = await self._backend.admin.topic_id(self._topic)
        asked_at = lease_clock()
        await self.log.say(self.queue, Word(self.name, self._lease_s, topic=topic))
        self._steady_since = asked_at
        self._until = asked_at + self._lease_s
        self.is_in = True
        self._backend.pulse.add(self)

    async def say(self, word: Word) -> Heard:
        return await self.log.say(self.queue, word)

    async def reads(self, topic_id: str) -> None:
        """The messages lie in this one now. All members are told if it was made anew."""
        if self.pool.topic not in ("", topic_id):
            await self._backend.claims.made_anew(self.queue)

    def beat(self) -> None:
        """Called by a thread that nothing here delays: say that this member lives."""
        if self._is_beating or not self.is_in:
            return
        name, asked_at = self.name, lease_clock()

        def heard(is_stored: bool) -> None:
            self._is_beating = False
            if is_stored and name == self.name:
                if asked_at > self._until:
                    self._steady_since = asked_at
                self._until = max(self._until, asked_at + self._lease_s)

        self._is_beating = True
        value = pack_word(self.queue, Word(name))
        if not self._backend.sure.shout(self.log.topic, self.log.partition, self.queue.encode(), value, heard):
            self._is_beating = False

    @property
    def has_lapsed(self) -> bool:
        return lease_clock() > self._until - _MARGIN_S

    def heard(self, word: Word, heard: Heard, *, is_mine: bool) -> None:
        self._last_heard[word.member] = lease_clock()
        if heard.buried == self.name or (is_mine and not heard.is_member):
            self.is_in = False
        self._listener(word, heard, is_mine)

    async def look_after_others(self) -> None:
        """Accuse who was silent for too long; the log decides."""
        now = lease_clock()
        names = self.pool.members
        self._last_heard = {name: self._last_heard.get(name, now) for name in names}
        if not self.is_in or self.has_lapsed or now - self._steady_since < self._lease_s:
            return
        for name, other in tuple(names.items()):
            silent_s = now - self._last_heard.get(name, now)
            if name != self.name and silent_s > other.lease_s + _MARGIN_S:
                await self.say(Word(self.name, silent=(name, other.last)))

    def end(self) -> None:
        """Say nothing more."""
        self.is_in = False
        self._backend.pulse.remove(self)

    async def leave(self, word: Word | None = None) -> None:
        """What is held goes back at once; `word` says more of it."""
        was_in = self.is_in
        self.end()
        if self._log is None:
            return
        try:
            if was_in:
                await self.say(word or Word(self.name, leaves=True))
        except BackendError as error:
            log.warning("what was held could not be given back; it is free when the lease ends: %s", error)
        self.log.seats.get(self.queue, {}).pop(self.name, None)
