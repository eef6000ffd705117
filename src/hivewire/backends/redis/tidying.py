"""What is looked after now and then: mailboxes of the dead, and groups that somebody has meddled with."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from hivewire.backends.redis import competing, scripts
from hivewire.backends.redis.keys import QUEUES, REPLY_PREFIX, base
from hivewire.backends.redis.link import good
from hivewire.backends.redis.pool import PoolConsumer

if TYPE_CHECKING:
    from hivewire.backends.redis.backend import RedisBackend

log = logging.getLogger(__name__)


async def drop_mailboxes(backend: RedisBackend) -> int:
    """Those in which nobody waits any more; how many."""
    dropped = 0
    for spec in await backend.queues():
        if spec.name.startswith(REPLY_PREFIX):
            (answer,) = await backend.link.ask([scripts.run(scripts.DROP, base(spec.name), 1)])
            if good(answer, f"drop {spec.name}"):
                await backend.link.call("SREM", QUEUES, spec.name)
                dropped += 1
    return dropped


async def mend(backend: RedisBackend) -> None:
    """The groups of competing queues that are consumed here."""
    queues = sorted({consumer.queue for consumer in backend.consumers if isinstance(consumer, PoolConsumer)})
    answers = await backend.link.ask([scripts.run(competing.MEND, base(queue)) for queue in queues])
    for queue, mended in zip(queues, answers, strict=True):
        if good(mended, f"look for lost messages of {queue}"):
            log.warning("somebody meddled with the group", extra={"queue": queue, "handed_out_again": mended})
