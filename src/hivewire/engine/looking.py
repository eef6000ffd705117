"""What people look at and put right: dead letters, delayed messages, the life of one message, the store's health."""

from __future__ import annotations

import asyncio
import logging
import re
import sys
import time
from collections.abc import Awaitable, Callable, Collection, Sequence
from functools import partial
from typing import Final

from hivewire.backend import Backend, DeadRecord, Waiting
from hivewire.codec import check_agent, encode
from hivewire.codec.names import check_texts
from hivewire.codec.values import shown
from hivewire.engine.core import Core
from hivewire.engine.explain import note_letters
from hivewire.errors import HivewireError, MessageError, Undecodable
from hivewire.message import Message
from hivewire.protocol import DeadLetter, Delayed, Health
from hivewire.record import Record, message_of

log = logging.getLogger(__name__)

_MARK: Final = "#"
"""What cursors begin with, so that they are not taken for ids."""

_cursor = re.compile(_MARK + r"[a-z]?[0-9][0-9a-fpx.+-]*").fullmatch
_PAGE: Final = 1_000
_HEALTH_S = 3.0


def check_page(agent: str | None, limit: object, after: object) -> None:
    """Raise `MessageError` unless a page of a listing can be asked for so."""
    if agent is not None:
        check_agent(agent)
    if type(limit) is not int or limit < 1:
        raise MessageError(f"limit is a whole number, at least 1; got {limit!r}")
    if after is not None:
        check_texts((after,), "after")


Page = Callable[[str | None], Awaitable[Sequence[DeadRecord | Waiting]]]


async def _place(after: str | None, page: Page) -> str | None:
    """Where a listing goes on: its store's cursor. An id is looked for from the start."""
    if not after:
        return None
    if _cursor(after):
        return after.removeprefix(_MARK)
    found: list[str] = []
    start: str | None = None
    while part := await page(start):
        found += [each.cursor for each in part if each.record.id == after]
        start = part[-1].cursor
    if len(found) == 1:
        return found[0]
    raise MessageError(
        f"after is the `cursor` of the last one of a page, or its id, or None; got {shown(after)}, the id of"
        f" {'several' if found else 'none'} in this listing"
    )


async def _readable(core: Core, record: Record) -> Message | None:
    try:
        return message_of(record) if core.claims is None else await core.claims.message_of(record)
    except Undecodable:
        return None


async def _raw(core: Core, record: Record, message: Message | None) -> bytes:
    """The original bytes, as far as they can be had."""
    if not record.body:
        return encode(message, sys.maxsize) if message is not None else b""
    try:
        return record.body if core.claims is None else await core.claims.body_of(record)
    except Undecodable:
        return record.body


async def dead_letters(core: Core, agent: str | None, limit: int, after: str | None) -> list[DeadLetter]:
    letters = []
    place = await _place(after, partial(core.backend.dead, agent, _PAGE))
    for dead in await core.backend.dead(agent, limit, place):
        record, letter = dead.record, dead.letter
        message = await _readable(core, record)
        letters.append(
            DeadLetter(
                id=record.id,
                agent=dead.queue,
                message=message,
                raw=await _raw(core, record, message),
                reason=letter.reason,
                error=letter.error,
                attempts=letter.attempts,
                first_at=letter.first_at,
                dead_at=dead.dead_at,
                worker=letter.worker,
                cursor=_MARK + dead.cursor,
            )
        )
    return letters


async def cleanup(core: Core, older_than_s: float) -> int:
    forgotten = await core.backend.cleanup(older_than_s) + await core.trail.forget(older_than_s)
    if core.claims is not None:
        forgotten += await core.claims.sweep(core.backend, older_than_s)
    return forgotten


async def purge_old(core: Core) -> None:
    """Dead letters beyond their time, if there is one: never without a word."""
    keep_s = core.settings.dead_letter_keep_s
    if keep_s is None:
        return
    if core.trail.on:
        await note_letters(core.backend, core.trail, "purged", None, None, keep_s)
    purged = await core.backend.purge_dead(None, None, keep_s)
    if purged:
        core.metrics.purged += purged
        log.warning("dead letters purged: older than dead_letter_keep_s", extra={"purged": purged, "keep_s": keep_s})


async def delayed(core: Core, agent: str, limit: int, after: str | None) -> list[Delayed]:
    place = await _place(after, partial(core.backend.peek, agent, _PAGE, delayed_only=True))
    return [
        Delayed(
            id=waiting.record.id,
            agent=agent,
            message=await _readable(core, waiting.record),
            stored_at=waiting.stored_at,
            due_at=waiting.due_at,
            cursor=_MARK + waiting.cursor,
        )
        for waiting in await core.backend.peek(agent, limit, place, delayed_only=True)
    ]


async def cancel_delayed(core: Core, ids: Collection[str], agent: str | None) -> int:
    backend, trail, wanted = core.backend, core.trail, set(ids)
    queues = [spec.name for spec in await backend.queues() if agent is None or spec.name == agent]
    cancelled = 0
    for queue in queues:
        found = await backend.find_delayed(queue, wanted)
        gone = set(await backend.withdraw(queue, [waiting.cursor for waiting in found])) if found else set()
        cancelled += len(gone)
        if core.claims is not None:
            core.claims.cancelled([waiting.record for waiting in found if waiting.cursor in gone])
        if trail.on:
            for waiting in found:
                if waiting.cursor in gone:
                    trail.note("cancelled", queue, waiting.record.id, replay=waiting.record.replay)
    return cancelled


async def health(name: str, backend: Backend, ready: Callable[[], Awaitable[object]]) -> Health:
    """Of the store, which `ready` connects to; bad news is an answer, too."""
    began = time.perf_counter()
    durability = backend.features.durability
    try:
        async with asyncio.timeout(_HEALTH_S):
            await ready()
            found = await backend.health()
    except TimeoutError:
        return Health(
            ok=False, backend=name, durability=durability, detail=f"the store did not answer within {_HEALTH_S} s"
        )
    except (HivewireError, OSError) as error:
        return Health(ok=False, backend=name, durability=durability, detail=str(error))
    return Health(
        ok=found.ok,
        backend=name,
        durability=found.durability,
        detail=found.detail,
        warnings=tuple(found.warnings),
        latency_s=time.perf_counter() - began,
    )
