"""Storing what is sent: waiting for room, repeating what has an unknown outcome."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence

from hivewire.backend import Append, Duplicate
from hivewire.engine.core import Core
from hivewire.errors import BackendError, ConnectionLost, QueueFull, TimedOut

_FIRST_WAIT_S = 0.002
_MOST_WAIT_S = 0.1


class Sender:
    """Appends until everything is stored or the time is up. A repeat has the same id, so that it is
    handled once."""

    def __init__(self, core: Core) -> None:
        self._core = core
        self._under_way = 0
        self._idle = asyncio.Event()
        self._idle.set()

    async def append(self, batch: Sequence[Append], timeout_s: float) -> Mapping[int, Duplicate | Exception]:
        self._under_way += 1
        try:
            problems = await self._core.backend.append(batch)
            if problems and not all(isinstance(problem, Duplicate) for problem in problems.values()):
                problems = await self._again(batch, problems, timeout_s)
        except ConnectionLost as error:
            problems = await self._again(batch, dict.fromkeys(range(_size(batch)), error), timeout_s)
        finally:
            self._under_way -= 1
            if not self._under_way:
                self._idle.set()
        self._core.metrics.messages_sent += _size(batch) - len(problems)
        return problems

    async def _again(
        self, batch: Sequence[Append], problems: Mapping[int, Duplicate | Exception], timeout_s: float
    ) -> Mapping[int, Duplicate | Exception]:
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout_s
        wait_s = _FIRST_WAIT_S
        duplicates: dict[int, Duplicate] = {}
        while True:
            errors = {place: problem for place, problem in problems.items() if isinstance(problem, Exception)}
            duplicates.update({p: problem for p, problem in problems.items() if isinstance(problem, Duplicate)})
            if not errors:
                return duplicates
            worst = next(iter(errors.values()))
            for error in errors.values():
                if not (isinstance(error, BackendError) and error.retryable):
                    raise error
            left = deadline - loop.time()
            if left <= 0:
                raise worst if isinstance(worst, QueueFull | ConnectionLost) else TimedOut(f"send: {worst}") from worst
            await asyncio.sleep(min(wait_s * (0.5 + self._core.rng.random()), left))
            wait_s = min(wait_s * 2, _MOST_WAIT_S)
            batch = _only(batch, set(errors))
            try:
                problems = await self._core.backend.append(batch)
            except ConnectionLost as error:
                problems = dict.fromkeys(range(_size(batch)), error)

    async def drain(self, seconds: float) -> None:
        """Until what was being sent is stored or refused."""
        self._idle.clear()
        if self._under_way:
            try:
                async with asyncio.timeout(seconds):
                    await self._idle.wait()
            except TimeoutError:
                return


def _size(batch: Sequence[Append]) -> int:
    return sum(len(entry.records) for entry in batch)


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
