"""What the tests of the SQLite driver share."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence, Set
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from hivewire.backend import Append, Backend, Fetched, Letter, Member, Ownership, Record, Saved
from hivewire.backends.sqlite import SQLiteBackend
from hivewire.ids import new_id
from hivewire.settings import Settings


class Owner(Ownership):
    def __init__(self) -> None:
        self.losses = 0

    async def gained(self, shard: int, token: int, saved: bytes, settled: Sequence[Any] = ()) -> None: ...

    async def losing(self, shards: Set[int], within_s: float) -> Mapping[int, Saved]:
        return {}

    def lost(self, shards: Set[int]) -> None:
        assert shards == {0}
        self.losses += 1


LETTER = Letter(reason="rejected", error="no good", attempts=1, first_at=1.5, worker="w")


def member(name: str = "me", lease_s: float = 10.0) -> Member:
    return Member(name=name, lease_s=lease_s)


def record(key: str, text: str = "", **fields: Any) -> Record:
    return Record(fields.pop("id", None) or new_id(), key, text.encode(), "task", "me", **fields)


def texts(taken: Sequence[Fetched]) -> list[str]:
    return [fetched.record.body.decode() for fetched in taken]


async def put(backend: Backend, queue: str, key: str, *numbers: object, **fields: Any) -> None:
    assert not await backend.append([Append(queue, [record(key, str(number)) for number in numbers], **fields)])


@asynccontextmanager
async def opened(path: Path, **settings: Any) -> AsyncIterator[SQLiteBackend]:
    backend = SQLiteBackend(Settings(protocol="sqlite", url=f"sqlite:///{path}", **settings))
    await backend.open()
    try:
        yield backend
    finally:
        await backend.close()
