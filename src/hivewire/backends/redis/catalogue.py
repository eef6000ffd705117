"""Small values with versions. Those that live for a while are keys of their own, so that the server forgets them."""

from __future__ import annotations

from collections.abc import Mapping

from hivewire.backend import Entry
from hivewire.backends.redis import scripts
from hivewire.backends.redis.keys import CATALOGUE, IN_CATALOGUE, NOTE, NOTES
from hivewire.backends.redis.link import Link, good

_COUNTED = ("agent/", "group/")
_NONE = Entry(b"", 0)


def _entry(stored: bytes | None) -> Entry:
    if stored is None:
        return _NONE
    version, _, value = stored.partition(b" ")
    return Entry(value, int(version))


async def get(link: Link, key: str) -> Entry:
    kept, note = await link.ask([("HGET", CATALOGUE, key), ("GET", NOTE + key)])
    kept, note = good(kept, f"read {key}"), good(note, f"read {key}")
    return _entry(kept if note is None else note)


async def put(link: Link, key: str, value: bytes, version: int, ttl_s: float | None) -> Entry | None:
    ttl_ms = 0 if ttl_s is None else max(1, round(ttl_s * 1000))
    counted = int(key.startswith(_COUNTED))
    command = scripts.run(scripts.PUT, IN_CATALOGUE, key, value, version, ttl_ms, counted)
    (answer,) = await link.ask([command])
    stored = good(answer, f"store {key}")
    return Entry(value, stored) if stored else None


async def scan(link: Link, prefix: str) -> Mapping[str, Entry]:
    found: dict[str, Entry] = {}
    flat, notes = await link.ask([("HGETALL", CATALOGUE), ("ZRANGE", NOTES, 0, -1)])
    flat, notes = good(flat, f"read what begins with {prefix}"), good(notes, f"read what begins with {prefix}")
    for at in range(0, len(flat), 2):
        key = flat[at].decode()
        if key.startswith(prefix):
            found[key] = _entry(flat[at + 1])
    names = [name.decode() for name in notes if name.startswith(prefix.encode())]
    if names:
        values = await link.call("MGET", *[NOTE + name for name in names])
        found.update({name: _entry(value) for name, value in zip(names, values, strict=True) if value})
    return dict(sorted(found.items()))
