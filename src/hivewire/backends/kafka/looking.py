"""What a queue holds, read from the log without taking it: for people who look."""

from __future__ import annotations

from collections.abc import Sequence, Set
from typing import TYPE_CHECKING, Literal

from hivewire.backend import Waiting
from hivewire.backends.kafka.depth import progress
from hivewire.backends.kafka.metadata import Committed
from hivewire.backends.kafka.packing import record_of, stored_at
from hivewire.rules.later import Agenda, Later
from hivewire.rules.progress import History, decode

if TYPE_CHECKING:
    from hivewire.backends.kafka.backend import KafkaBackend

_STRETCH = 500


async def peek(backend: KafkaBackend, queue: str, limit: int, after: str | None, delayed_only: bool) -> list[Waiting]:
    """In the order of partitions, and in each in that of the log; then what is delayed, as it falls due. Cursors
    rise in this order: `a`, partition and offset, or `b`, time and offset."""
    spec = await backend.topics.look_up(queue)
    if spec is None:
        return []
    found: list[Waiting] = []
    start = after or ""
    if not delayed_only and start < "b":
        topic = backend.names.topic(queue)
        for number, (end, at) in enumerate(await progress(backend, queue)):
            if len(found) < limit:
                found += await _of_partition(backend, topic, number, end, at, limit - len(found), start)
    if len(found) < limit:
        found += await _delayed(backend, queue, limit - len(found), start, to_come=delayed_only)
    return found


async def _of_partition(
    backend: KafkaBackend, topic: str, number: int, end: int, at: Committed, limit: int, start: str
) -> list[Waiting]:
    first = at.watermark
    if start[:6] > f"a{number:05}":
        return []
    if start[:6] == f"a{number:05}":
        first = max(first, int(start[6:]) + 1)
    state = decode(at.state)
    finished = set(state.ahead)
    known = {entry.at: entry for entry in state.history}
    later = sorted(due_at for due_at in at.due_at if due_at > backend.now())
    found: list[Waiting] = []
    while first < end and len(found) < limit:
        last = min(first + _STRETCH, end) - 1
        wanted = [offset for offset in range(first, last + 1) if offset not in finished]
        for message in await backend.reader.read(topic, number, first, last, wanted) if wanted else ():
            entry = known.get(message.offset()) or History(message.offset())
            status, due_at = _status(entry, later)
            found.append(
                Waiting(
                    cursor=f"a{number:05}{message.offset():020}",
                    record=record_of(message),
                    state=status,
                    stored_at=stored_at(message),
                    due_at=due_at,
                    starts=entry.starts,
                    failures=entry.failures,
                )
            )
        first = last + 1
    return found[:limit]


def _status(entry: History, later: Sequence[float]) -> tuple[Literal["ready", "in_flight", "scheduled"], float]:
    """When the attempts after a failure are due is known, of which record is not: the first one is named."""
    if entry.running:
        return "in_flight", 0.0
    if entry.failures and later:
        return "scheduled", later[0]
    return "ready", 0.0


async def _delayed(backend: KafkaBackend, queue: str, limit: int, start: str, *, to_come: bool) -> list[Waiting]:
    waiting = await backend.delays.waiting(queue)
    if waiting is None:
        return []
    agenda, now = waiting.agenda, backend.now()
    rows = sorted((_cursor(known), known) for known in agenda.known.values())
    rest = [known for cursor, known in rows if cursor > start and (not to_come or agenda.is_to_come(known.at, now))]
    found: list[Waiting] = []
    while rest and len(found) < limit:  # what was moved meanwhile may be gone: a page that is not full is the last
        chosen, rest = rest[: limit - len(found)], rest[limit - len(found) :]
        found += await _read(backend, queue, chosen, agenda, now)
    return found


def _cursor(later: Later) -> str:
    return f"b{int(later.due_at * 1000):015}{later.at:020}"


async def _read(
    backend: KafkaBackend, queue: str, chosen: Sequence[Later], agenda: Agenda, now: float
) -> list[Waiting]:
    bodies = await backend.delays.read(queue, [later.at for later in chosen])
    return [
        Waiting(
            cursor=_cursor(later),
            record=bodies[later.at][0],
            state="scheduled" if agenda.is_to_come(later.at, now) else "ready",
            stored_at=bodies[later.at][1],
            due_at=later.due_at,
        )
        for later in chosen
        if later.at in bodies
    ]


async def find_delayed(backend: KafkaBackend, queue: str, ids: Set[str]) -> list[Waiting]:
    """The agenda knows them by their ids: no other one is read."""
    waiting = await backend.delays.waiting(queue)
    if waiting is None:
        return []
    agenda, now = waiting.agenda, backend.now()
    found = [later for later in agenda.known.values() if later.life[0] in ids and agenda.is_to_come(later.at, now)]
    return await _read(backend, queue, sorted(found, key=_cursor), agenda, now)


async def withdraw(backend: KafkaBackend, queue: str, cursors: Sequence[str]) -> list[str]:
    places = {int(cursor[-20:]): cursor for cursor in cursors}
    gone = await backend.delays.withdraw(queue, list(places))
    return [cursor for at, cursor in places.items() if at in gone]
