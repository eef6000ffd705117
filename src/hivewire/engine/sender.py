"""Storing what is sent: waiting for room, repeating what has an unknown outcome."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from heapq import heappop, heappush
from itertools import count

from hivewire.backend import Append, Backend, Duplicate, Record, Room
from hivewire.engine.core import Core
from hivewire.engine.trail import said
from hivewire.errors import BackendError, ConnectionLost, HivewireError, QueueFull, TimedOut

_FIRST_WAIT_S = 0.002
_MOST_WAIT_S = 0.1


class _Line:
    """Senders that wait for one queue, in the order of their calls."""

    def __init__(self) -> None:
        self.is_taken = False
        self.waiting: list[tuple[int, asyncio.Future[None]]] = []

    def next(self) -> tuple[int, asyncio.Future[None]] | None:
        """Who is first, but for those who gave up."""
        while self.waiting and self.waiting[0][1].done():
            heappop(self.waiting)
        return self.waiting[0] if self.waiting else None


class _Unstored:
    """What the store has refused of one call, or was never asked to take. None once the outcome of a try is unknown."""

    def __init__(self, batch: Sequence[Append]) -> None:
        self.batch: Sequence[Append] | None = batch

    async def append(self, backend: Backend, batch: Sequence[Append]) -> Mapping[int, Duplicate | Exception]:
        known, self.batch = self.batch is not None, None
        problems = await backend.append(batch)
        if known and all(isinstance(problem, QueueFull | Duplicate) for problem in problems.values()):
            refused = {place for place, problem in problems.items() if isinstance(problem, QueueFull)}
            self.batch = _only(batch, refused) if refused else ()
        return problems


class Sender:
    """Appends until everything is stored or the time is up. A repeat has the same id, so that it is
    handled once. While somebody waits for a queue, later sends to it wait behind."""

    def __init__(self, core: Core) -> None:
        self._core = core
        self._under_way = 0
        self._idle = asyncio.Event()
        self.lines: dict[tuple[str, Room], _Line] = {}
        """Where somebody waits for room."""
        self._numbers = count()
        self._first_tries: dict[int, None] = {}
        """Calls whose first try is under way, oldest first: should it be refused, they stand before later calls."""

    async def append(self, batch: Sequence[Append], timeout_s: float) -> Mapping[int, Duplicate | Exception]:
        """Idempotency keys: only in a batch of one record. Returns the duplicates by running number."""
        self._under_way += 1
        size, number = _size(batch), next(self._numbers)
        trail, claims, time = self._core.trail, self._core.claims, asyncio.get_running_loop().time
        ends_at = time() + timeout_s
        began = self._core.backend.now() if trail.all else 0.0
        left: _Unstored | None = None
        try:
            if claims is not None:
                batch = await claims.put_away(batch, timeout_s)
                left = _Unstored(batch)
            if self.lines and any((entry.queue, entry.room) in self.lines for entry in batch):
                problems: Mapping[int, Duplicate | Exception] = await self._in_line(
                    number, batch, None, max(ends_at - time(), 0.0), left
                )
            else:
                self._first_tries[number] = None
                try:
                    problems = await self._try(batch, left)
                finally:
                    del self._first_tries[number]
                    if self.lines:
                        self._look_at_lines()
                if problems and not all(isinstance(problem, Duplicate) for problem in problems.values()):
                    problems = await self._in_line(number, batch, problems, max(ends_at - time(), 0.0), left)
        except HivewireError as error:
            self._note_refused(batch, error)
            raise
        finally:
            if claims is not None and left is not None and left.batch:
                claims.forget(_records(left.batch))
            self._under_way -= 1
            if not self._under_way:
                self._idle.set()
        self._core.metrics.messages_sent += size - len(problems)
        if trail.all or (problems and trail.on):
            self._note(batch, problems, began)
        if problems and claims is not None:
            claims.forget(_not_stored(batch, problems))
        return problems

    async def one(self, queue: str, record: Record, room: Room, timeout_s: float) -> None:
        """`append` of one plain record, at less cost."""
        stored = None if self.lines else self._core.backend.append_soon(queue, record, room)
        if stored is None:
            await self.append((Append(queue, (record,), room=room),), timeout_s)
            return
        number = next(self._numbers)
        self._under_way += 1
        self._first_tries[number] = None
        problem: Exception | None
        time = asyncio.get_running_loop().time
        ends_at = time() + timeout_s
        try:
            try:
                problem = await stored
            except ConnectionLost as error:
                problem = error
            finally:
                del self._first_tries[number]
                if self.lines:
                    self._look_at_lines()
            if problem is not None:
                batch = (Append(queue, (record,), room=room),)
                try:
                    await self._in_line(number, batch, {0: problem}, max(ends_at - time(), 0.0))
                except HivewireError as error:
                    self._note_refused(batch, error)
                    raise
        finally:
            self._under_way -= 1
            if not self._under_way:
                self._idle.set()
        self._core.metrics.messages_sent += 1

    def _look_at_lines(self) -> None:
        """Once the call whose first try is over has its place in the line."""
        asyncio.get_running_loop().call_soon(self._go_on)

    def _note_refused(self, batch: Sequence[Append], error: HivewireError) -> None:
        trail = self._core.trail
        if trail.on:
            for entry in batch:
                for record in entry.records:
                    trail.note("refused", entry.queue, record.id, text=said(error))

    def _note(self, batch: Sequence[Append], problems: Mapping[int, Duplicate | Exception], began: float) -> None:
        trail, number = self._core.trail, 0
        for entry in batch:
            for record in entry.records:
                first = problems.get(number)
                number += 1
                if isinstance(first, Duplicate):
                    key = f"the idempotency key {entry.idempotency_key!r}"
                    trail.note("duplicate", entry.queue, record.id, text=f"not stored: {key} belongs to {first.id}")
                    if first.id != record.id:
                        text = f"sent again as {record.id} with {key}; that one was not stored"
                        trail.note("duplicate", entry.queue, first.id, text=text)
                elif trail.all:
                    due = max(entry.delay_s, record.due_at and record.due_at - began)
                    trail.note("sent", entry.queue, record.id, at=began, text=f"by {record.sender}")
                    trail.note("stored", entry.queue, record.id, text=f"due in {due:.1f} s" if due > 0 else "")

    async def _try(self, batch: Sequence[Append], left: _Unstored | None) -> Mapping[int, Duplicate | Exception]:
        backend = self._core.backend
        try:
            return await (backend.append(batch) if left is None else left.append(backend, batch))
        except ConnectionLost as error:
            return dict.fromkeys(range(_size(batch)), error)

    async def _in_line(
        self,
        number: int,
        batch: Sequence[Append],
        problems: Mapping[int, Duplicate | Exception] | None,
        timeout_s: float,
        left: _Unstored | None = None,
    ) -> Mapping[int, Duplicate | Exception]:
        keys = sorted({(entry.queue, entry.room) for entry in batch})
        last = sorted(_errors(problems or {}).values(), key=_is_refusal)
        """What the store has said, at the end what counts."""
        try:
            async with asyncio.timeout(timeout_s), AsyncExitStack() as stack:
                for key in keys:
                    await stack.enter_async_context(self._turn(number, key))
                return await self._until_stored(batch, problems, last, left)
        except TimeoutError:
            if last:
                raise last[-1] from None
            raise TimedOut(f"send to {keys[0][0]}: not stored in its time; others wait before it") from None

    @asynccontextmanager
    async def _turn(self, number: int, key: tuple[str, Room]) -> AsyncIterator[None]:
        """Being first in one line; the line goes when nobody waits in it."""
        line = self.lines.setdefault(key, _Line())
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        heappush(line.waiting, (number, turn))
        self._give_turn(line)
        try:
            await turn
            yield
        finally:
            if turn.done() and not turn.cancelled():
                line.is_taken = False
            turn.cancel()
            self._give_turn(line)
            if not line.is_taken and line.next() is None and self.lines.get(key) is line:
                del self.lines[key]

    def _give_turn(self, line: _Line) -> None:
        """To the oldest call, if no older one may still come."""
        first = line.next()
        if line.is_taken or first is None:
            return
        number, turn = first
        if not self._first_tries or next(iter(self._first_tries)) > number:
            line.is_taken = True
            turn.set_result(None)

    def _go_on(self) -> None:
        for line in self.lines.values():
            self._give_turn(line)

    async def _until_stored(
        self,
        batch: Sequence[Append],
        problems: Mapping[int, Duplicate | Exception] | None,
        last: list[Exception],
        left: _Unstored | None,
    ) -> Mapping[int, Duplicate | Exception]:
        wait_s = _FIRST_WAIT_S
        while True:
            if problems is None:
                problems = await self._try(batch, left)
            errors = _errors(problems)
            if not errors:
                return problems
            for error in errors.values():
                if _is_refusal(error):
                    raise error
            last.append(next(iter(errors.values())))
            batch = _only(batch, set(errors))
            claims = self._core.claims
            if claims is not None and not all(isinstance(error, QueueFull) for error in errors.values()):
                batch = claims.repeated(batch)
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


def _size(batch: Sequence[Append]) -> int:
    return sum([len(entry.records) for entry in batch])


def _errors(problems: Mapping[int, Duplicate | Exception]) -> dict[int, Exception]:
    return {place: problem for place, problem in problems.items() if isinstance(problem, Exception)}


def _is_refusal(error: Exception) -> bool:
    """It is the same at each repeat."""
    return not (isinstance(error, BackendError) and error.retryable)


def _records(batch: Sequence[Append]) -> list[Record]:
    return [record for entry in batch for record in entry.records]


def _not_stored(batch: Sequence[Append], problems: Mapping[int, Duplicate | Exception]) -> list[Record]:
    """Those in whose stead an earlier message is there. One that met itself was stored at the first try."""
    records = _records(batch)
    found = ((records[place], problem) for place, problem in problems.items())
    return [record for record, problem in found if isinstance(problem, Duplicate) and problem.id != record.id]


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
