"""Noting what happened to messages, written behind in batches; and telling the whole story of one."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence, Set

from hivewire.backend import TRAIL_PREFIX, Backend, Dead, Unfinished
from hivewire.errors import last_words, told
from hivewire.record import Fetched
from hivewire.rules.chunks import beyond, pack, unpack
from hivewire.rules.trail import Event, What, in_order
from hivewire.settings import Settings

_MOST_UNWRITTEN = 20_000
"""Events that wait to be written; what comes beyond is counted and not kept."""
_CHUNK = 1_000
_MOST_TEXT = 300


class Trail:
    """The notes of one protocol object. `note` costs an append to a list; `flush` is called about once a second,
    so the last second of a process that is killed is not told."""

    def __init__(self, backend: Backend, settings: Settings, worker: str) -> None:
        self._backend = backend
        self._worker = worker
        self.on = settings.trail != "off"
        self.all = settings.trail == "all"
        self._keep_s = settings.trail_keep_s
        self._most_bytes = settings.trail_bytes
        self._unwritten: list[Event] = []
        self._written_bytes = 0
        self._writing = asyncio.Lock()
        self.dropped = 0

    def note(
        self, what: What, queue: str, id: str, *, replay: int = 0, attempt: int = 0, text: str = "", at: float = 0.0
    ) -> None:
        """`at` 0: now."""
        if len(self._unwritten) >= _MOST_UNWRITTEN:
            self.dropped += 1
            return
        if text:
            text = " ".join(text.split())[:_MOST_TEXT]
        self._unwritten.append(Event(at or self._backend.now(), id, replay, what, queue, attempt, text))

    async def flush(self) -> None:
        """Store what was noted up to now. Raises `BackendError` and keeps the rest for the next time."""
        async with self._writing:  # who asks for a life comes beside the maintenance
            left = len(self._unwritten)  # what comes meanwhile goes next time: else there may be no end
            while left > 0:
                events = self._unwritten[: min(left, _CHUNK)]
                chunk = pack(self._worker, events)
                await self._backend.add_to_trail(chunk, self._keep_s)
                del self._unwritten[: len(events)]
                left -= len(events)
                self._written_bytes += len(chunk)
        if self._written_bytes > self._most_bytes // 8:
            await self.trim()

    async def trim(self) -> None:
        """Drop the oldest beyond the cap, if this process has written anything since the last time."""
        if self._written_bytes:
            self._written_bytes = 0
            chunks = list((await self._backend.trail()).items())
            gone = beyond([len(entry.value) for _, entry in chunks], self._most_bytes)
            await self._backend.forget_trail(dict(chunks[:gone]))

    async def forget(self, older_than_s: float) -> int:
        """Drop the chunks that were written before."""
        horizon = self._backend.now() - older_than_s
        old = {key: entry for key, entry in (await self._backend.trail()).items() if _written_at(key) < horizon}
        await self._backend.forget_trail(old)
        return len(old)

    async def of(self, id: str) -> list[Event]:
        """What is recorded of a message and its copies, in the order in which it happened."""
        await self.flush()
        found = [event for entry in (await self._backend.trail()).values() for event in unpack(entry.value, id)]
        return in_order(list(dict.fromkeys(found)))  # a chunk whose storing was not confirmed may be there twice


def _written_at(key: str) -> float:
    return float(key.removeprefix(TRAIL_PREFIX).partition("-")[0])


class Notes:
    """What one inbox notes; there is none where the trail is off, nor for queues that users do not know."""

    __slots__ = ("_looks_at_acks", "_queue", "_trail", "all")

    def __init__(self, trail: Trail, queue: str) -> None:
        self._trail = trail
        self._queue = queue
        self.all = trail.all
        self._looks_at_acks = trail.all

    def note(self, what: What, fetched: Fetched, text: str = "") -> None:
        record = fetched.record
        self._trail.note(what, self._queue, record.id, replay=record.replay, attempt=fetched.starts, text=text)

    def started(self, fetched: Fetched) -> None:
        self._looks_at_acks = True
        self.note("started", fetched)

    def taken_over(self, fetched: Fetched) -> None:
        self._looks_at_acks = True
        self.note("taken_over", fetched, "whoever had it before died or lost its lease")

    def settled(self, done: Sequence[Fetched], rest: Sequence[Unfinished], refused: Set[int]) -> None:
        """What the store has made of these outcomes; `refused` by identity."""
        for outcome in rest:
            if isinstance(outcome, Dead) and id(outcome.fetched) not in refused:
                letter = outcome.letter
                self.note("dead", outcome.fetched, f"{letter.reason}: {last_words(letter.error)}")
        if refused:
            for fetched in [*done, *(outcome.fetched for outcome in rest)]:
                if id(fetched) in refused:
                    self.note("lost", fetched, "its outcome was refused: the lease had ended, and it comes again")
        if self._looks_at_acks:
            for fetched in done:
                if (
                    (self.all or fetched.starts > 1 or fetched.suspect)
                    and not fetched.seen
                    and id(fetched) not in refused
                ):
                    self.note("acked", fetched)


def said(error: BaseException | None) -> str:
    """An error in one line."""
    if error is None:
        return "given back by its handler (nack)"
    return told(error).encode("utf-8", "backslashreplace").decode()
