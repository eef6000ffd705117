"""Storing what is sent: waiting for room, repeating what has an unknown outcome."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack

from hivewire.backend import Append, Duplicate, Room
from hivewire.engine.core import Core
from hivewire.errors import BackendError, ConnectionLost, TimedOut

_FIRST_WAIT_S = 0.002
_MOST_WAIT_S = 0.1


class _Line:
    """Senders that wait for one queue, first come, first served, so that they keep their order."""

    def __init__(self) -> None:
        self.turn = asyncio.Lock()
        self.waiting = 0


class Sender:
    """Appends until everything is stored or the time is up. A repeat has the same id, so that it is
    handled once. While somebody waits for a queue, later sends to it wait behind."""

    def __init__(self, core: Core) -> None:
        self._core = core
        self._under_way = 0
        self._idle = asyncio.Event()
        self._lines: dict[tuple[str, Room], _Line] = {}

    @property
    def has_lines(self) -> bool:
        """Somebody waits for room."""
        return bool(self._lines)

    async def append(self, batch: Sequence[Append], timeout_s: float) -> Mapping[int, Duplicate | Exception]:
        """Idempotency keys: only in a batch of one record. Returns the duplicates by running number."""
        self._under_way += 1
        size = _size(batch)
        try:
            if self._lines and any((entry.queue, entry.room) in self._lines for entry in batch):
                problems: Mapping[int, Duplicate | Exception] = await self._in_line(batch, None, timeout_s)
            else:
                try:
                    problems = await self._core.backend.append(batch)
                except ConnectionLost as error:
                    problems = dict.fromkeys(range(size), error)
                if problems and not all(isinstance(problem, Duplicate) for problem in problems.values()):
                    problems = await self._in_line(batch, problems, timeout_s)
        finally:
            self._under_way -= 1
            if not self._under_way:
                self._idle.set()
        self._core.metrics.messages_sent += size - len(problems)
        return problems

    async def _try(self, batch: Sequence[Append]) -> Mapping[int, Duplicate | Exception]:
        try:
            return await self._core.backend.append(batch)
        except ConnectionLost as error:
            return dict.fromkeys(range(_size(batch)), error)

    async def _in_line(
        self, batch: Sequence[Append], problems: Mapping[int, Duplicate | Exception] | None, timeout_s: float
    ) -> Mapping[int, Duplicate | Exception]:
        keys = sorted({(entry.queue, entry.room) for entry in batch})
        last: list[Exception] = []
        try:
            async with asyncio.timeout(timeout_s), AsyncExitStack() as stack:
                for key in keys:
                    await stack.enter_async_context(self._turn(key))
                return await self._until_stored(batch, problems, last)
        except TimeoutError:
            if last and isinstance(last[-1], BackendError):
                raise last[-1] from None
            raise TimedOut(f"send to {keys[0][0]}: not stored within {timeout_s} s; others wait before it") from None

    def _turn(self, key: tuple[str, Room]) -> _Turn:
        line = self._lines.get(key)
        if line is None:
            line = self._lines[key] = _Line()
        return _Turn(self._lines, key, line)

    async def _until_stored(
        self,
        batch: Sequence[Append],
        problems: Mapping[int, Duplicate | Exception] | None,
        last: list[Exception],
    ) -> Mapping[int, Duplicate | Exception]:
        wait_s = _FIRST_WAIT_S
        while True:
            if problems is None:
                problems = await self._try(batch)
            errors = {place: problem for place, problem in problems.items() if isinstance(problem, Exception)}
            if not errors:
                return problems
            for error in errors.values():
                if not (isinstance(error, BackendError) and error.retryable):
                    raise error
            last.append(next(iter(errors.values())))
            batch = _only(batch, set(errors))
            await asyncio.sleep(wait_s * (0.5 + self._core.rng.random()))
            wait_s = min(wait_s * 2, _MOST_WAIT_S)
            problems = None

    async def drain(self, seconds: float) -> None:
        """Until what was being sent is stored or refused."""
        self._idle.clear()
        if self._under_way:
            try:
                async with asyncio.timeout(seconds):
                    await self._idle.wait()
            except TimeoutError:
                return


class _Turn:
    """Being first in one line; the line goes when nobody waits in it."""

    def __init__(self, lines: dict[tuple[str, Room], _Line], key: tuple[str, Room], line: _Line) -> None:
        self._lines, self._key, self._line = lines, key, line

    async def __aenter__(self) -> None:
        self._line.waiting += 1
        try:
            await self._line.turn.acquire()
        except BaseException:
            self._left()
            raise

    async def __aexit__(self, *ended: object) -> None:
        self._line.turn.release()
        self._left()

    def _left(self) -> None:
        self._line.waiting -= 1
        if not self._line.waiting and self._lines.get(self._key) is self._line:
            del self._lines[self._key]


def _size(batch: Sequence[Append]) -> int:
    return sum([len(entry.records) for entry in batch])


def _only(batch: Sequence[Append], places: set[int]) -> list[Append]:
    """The records at these running numbers, in their order."""
    chosen: list[Append] = []
    number = 0
    for entry in batch:
        records = [record for place, record in enumerate(entry.records, number) if place in places]
        number += len(entry.records)
        if records:
            chosen.append(
                Append(entry.queue, records, entry.delay_s, entry.idempotency_key, entry.window_s, entry.room)
            )
    return chosen
