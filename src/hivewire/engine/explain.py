"""The life of one message: what the trail says, and where the message is now."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import Literal

from hivewire.backend import Backend, DeadRecord, Waiting
from hivewire.engine.trail import Trail
from hivewire.errors import Unsupported, last_words
from hivewire.message import REPLY_PREFIX
from hivewire.rules.trail import Explanation, Place

_PAGE = 2_000
_MOST_NOTED = 10_000


async def explain(backend: Backend, trail: Trail, id: str) -> Explanation:
    places: list[Place] = []
    unsearched: list[str] = []
    for spec in await backend.queues():
        if spec.name.startswith(REPLY_PREFIX):
            continue
        try:
            places += [_waiting(spec.name, each) async for each in backend.browse(spec.name) if _is(each.record.id, id)]
        except Unsupported:
            unsearched.append(spec.name)
    places += [_dead(each) async for each in _letters(backend, None) if _is(each.record.id, id)]
    return Explanation(id=id, events=await trail.of(id), places=places, unsearched=unsearched)


def _is(found: str, id: str) -> bool:
    """The message itself, or its copy for a member of a group."""
    return found == id or found.startswith(f"{id}@")


async def _letters(backend: Backend, queue: str | None) -> AsyncIterator[DeadRecord]:
    after: str | None = None
    while page := await backend.dead(queue, _PAGE, after):
        for dead in page:
            yield dead
        after = page[-1].cursor


def _waiting(queue: str, waiting: Waiting) -> Place:
    return Place(
        id=waiting.record.id,
        agent=queue,
        state=waiting.state,
        replay=waiting.record.replay,
        stored_at=waiting.stored_at,
        starts=waiting.starts,
        due_at=waiting.due_at,
    )


def _dead(dead: DeadRecord) -> Place:
    letter = dead.letter
    return Place(
        id=dead.record.id,
        agent=dead.queue,
        state="dead",
        replay=dead.record.replay,
        stored_at=letter.first_at,
        starts=letter.attempts,
        dead_at=dead.dead_at,
        reason=f"{letter.reason}: {last_words(letter.error)}" if letter.error else letter.reason,
    )


async def note_letters(
    backend: Backend,
    trail: Trail,
    what: Literal["replayed", "purged"],
    queue: str | None,
    ids: Sequence[str] | None,
    older_than_s: float | None = None,
) -> None:
    """Note what is about to happen to dead letters, with the reason of their death: the store may have buried
    them where nobody noted it."""
    wanted = None if ids is None else set(ids)
    horizon = None if older_than_s is None else backend.now() - older_than_s
    noted, missing = 0, set(wanted or ())
    async for dead in _letters(backend, queue):
        if (wanted is None or dead.record.id in wanted) and (horizon is None or dead.dead_at <= horizon):
            record, place = dead.record, _dead(dead)
            life = record.replay + (what == "replayed")
            trail.note(what, dead.queue, record.id, replay=life, text=f"it was dead ({place.reason})")
            noted += 1
            missing.discard(record.id)
            if noted >= _MOST_NOTED or (wanted is not None and not missing):
                return
