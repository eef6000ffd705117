"""Dead letters: listed, revived and purged, each move in one step."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from hivewire.backend import DeadRecord, QueueSpec
from hivewire.backends.redis import scripts
from hivewire.backends.redis.address import Command
from hivewire.backends.redis.keys import base
from hivewire.backends.redis.link import Link, good
from hivewire.backends.redis.packing import hashed, level, pack_head, ttl_ms, unpack_dead

_PAGE = 500


async def listed(link: Link, queues: Sequence[str], limit: int, after: str | None) -> list[DeadRecord]:
    """The oldest after the cursor, over all these queues."""
    least = f"({after}" if after else "-"
    ask: list[Command] = [
        ("ZRANGEBYLEX", f"{base(queue)}deadz", least, "+", "LIMIT", 0, max(limit, 0)) for queue in queues
    ]
    found: list[tuple[str, str]] = []
    if ask:
        for queue, answer in zip(queues, await link.ask(ask), strict=True):
            found += [(cursor.decode(), queue) for cursor in good(answer, f"list the dead letters of {queue}")]
    return await _read(link, sorted(found)[:limit])


async def _read(link: Link, places: Sequence[tuple[str, str]]) -> list[DeadRecord]:
    if not places:
        return []
    ask: list[Command] = [("HGET", f"{base(queue)}dead", cursor) for cursor, queue in places]
    letters = []
    for (cursor, queue), packed in zip(places, await link.ask(ask), strict=True):
        if good(packed, f"read a dead letter of {queue}") is not None:
            letters.append(unpack_dead(queue, cursor, packed))
    return letters


async def chosen(link: Link, queues: Sequence[str], ids: Sequence[str] | None) -> list[tuple[str, str]]:
    """(cursor, queue) of the letters of these messages, or of all, oldest first."""
    ask: list[Command] = []
    asked: list[str] = []
    for queue in queues:
        if ids is None:
            ask.append(("ZRANGEBYLEX", f"{base(queue)}deadz", "-", "+"))
            asked.append(queue)
            continue
        for id in dict.fromkeys(ids):
            ask.append(("ZRANGEBYLEX", f"{base(queue)}deadid", f"[{id}\0", f"[{id}\0\xff"))
            asked.append(queue)
    found: list[tuple[str, str]] = []
    if ask:
        for queue, answer in zip(asked, await link.ask(ask), strict=True):
            entries = good(answer, f"list the dead letters of {queue}")
            found.extend([(entry.rpartition(b"\0")[2].decode(), queue) for entry in entries])
    return sorted(found)


async def revive(link: Link, specs: Sequence[QueueSpec], ids: Sequence[str] | None) -> int:
    by_name = {spec.name: spec for spec in specs}
    places = await chosen(link, list(by_name), ids)
    revived = 0
    for page in _pages(places):
        parts: dict[str, list[str | bytes | int]] = {}
        for letter in await _read(link, page):
            record = letter.record
            head = pack_head(record, record.replay + 1)
            parts.setdefault(letter.queue, []).extend(
                [letter.cursor, hashed(record.key), level(record), record.id, head, record.body, ttl_ms(record)]
            )
        ask = [
            scripts.run(scripts.REVIVE, base(queue), by_name[queue].shards, by_name[queue].cap, *arguments)
            for queue, arguments in parts.items()
        ]
        if ask:
            revived += sum([good(answer, "replay dead letters") for answer in await link.post(ask)])
    return revived


async def purge(link: Link, queues: Sequence[str], ids: Sequence[str] | None, before: float | None) -> int:
    places = await chosen(link, queues, ids)
    if before is not None:
        places = [place for place in places if int(place[0].partition("-")[0]) / 1e6 <= before]
    purged = 0
    for page in _pages(places):
        parts: dict[str, list[str]] = {}
        for letter in await _read(link, page):
            parts.setdefault(letter.queue, []).extend([letter.cursor, letter.record.id])
        ask = [scripts.run(scripts.PURGE, base(queue), *arguments) for queue, arguments in parts.items()]
        if ask:
            purged += sum([good(answer, "purge dead letters") for answer in await link.post(ask)])
    return purged


def _pages(places: Sequence[tuple[str, str]]) -> Iterable[Sequence[tuple[str, str]]]:
    return (places[start : start + _PAGE] for start in range(0, len(places), _PAGE))
