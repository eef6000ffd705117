"""Messages that somebody else has deleted: trimmed, or taken out of a stream by hand. Each stream counts what was ever
added to it, and each settlement what it removed; what is missing between the two was lost."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

import msgspec

from hivewire.backends.redis.address import Command, Reply
from hivewire.backends.redis.keys import base
from hivewire.backends.redis.link import good
from hivewire.backends.redis.scripts import GAPS, run

if TYPE_CHECKING:
    from hivewire.backends.redis.backend import RedisBackend

log = logging.getLogger(__name__)

TOLD_S: Final = 86_400.0
"""For how long `health` speaks of a loss."""


class Gaps(msgspec.Struct, frozen=True):
    """What is missing in one queue: in all, found by this look, and when the last was found."""

    lost: int
    newly: int
    found_at: float


def question(queue: str) -> Command:
    return run(GAPS, base(queue))


def answer(backend: RedisBackend, queue: str, answered: Reply) -> Gaps:
    newly, lost, at_ms = good(answered, f"count what is missing in {queue}")
    backend.lost += newly
    if newly:
        log.warning("messages were deleted by others", extra={"queue": queue, "count": newly})
    return Gaps(lost, newly, int(at_ms) / 1000)


async def look(backend: RedisBackend) -> list[str]:
    """In the queues that are consumed here; warnings of what was lost lately."""
    queues = sorted({consumer.queue for consumer in backend.consumers})
    answers = await backend.link.ask([question(queue) for queue in queues]) if queues else []
    found = [answer(backend, queue, answered) for queue, answered in zip(queues, answers, strict=True)]
    return _warnings(queues, found, backend.now())


def _warnings(queues: Sequence[str], found: Sequence[Gaps], now: float) -> list[str]:
    return [
        f"{gaps.lost} messages of {queue} were deleted by others before they were acknowledged (XTRIM, XDEL, DEL, a"
        " maxmemory-policy that evicts): they are lost; nothing but Hivewire may delete what begins with hivewire:"
        for queue, gaps in zip(queues, found, strict=True)
        if gaps.lost and now - gaps.found_at < TOLD_S
    ]
