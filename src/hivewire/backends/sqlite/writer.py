"""The one thread of a process that writes: it takes all that waits and commits it together."""

from __future__ import annotations

import asyncio
import logging
import sqlite3
import threading
from collections.abc import Callable, Sequence
from operator import setitem
from pathlib import Path
from queue import SimpleQueue
from typing import Any, ClassVar, Protocol

from hivewire.backends.sqlite import file, storing, trouble
from hivewire.backends.sqlite.transaction import Known, Transaction
from hivewire.errors import Closed
from hivewire.handover import Handover

log = logging.getLogger(__name__)

_PATIENCE_IN_TROUBLE_S = 0.25
_MOST_AT_ONCE = 4_096
_TURNS_TO_SETTLE = (1, 2, 3)
"""Of the event loop: when nothing, one record, or more were handed out."""


class Errand:
    """Something to do inside a transaction, whose outcome nobody awaits."""

    __slots__ = ("arguments", "durable", "function")
    hands_out: ClassVar[bool] = False
    is_awaited: ClassVar[bool] = False

    def __init__(self, function: Callable[..., Any], arguments: tuple[Any, ...], durable: bool) -> None:
        self.function = function
        self.arguments = arguments
        self.durable = durable

    def deliver(self, value: Any, error: BaseException | None) -> None:
        """On the event loop, once it is stored or has failed."""


class Operation(Errand):
    """Its result goes to `future`."""

    __slots__ = ("future",)
    is_awaited: ClassVar[bool] = True

    def __init__(
        self, future: asyncio.Future[Any], function: Callable[..., Any], arguments: tuple[Any, ...], durable: bool
    ) -> None:
        self.future = future
        self.function = function
        self.arguments = arguments
        self.durable = durable

    def deliver(self, value: Any, error: BaseException | None) -> None:
        if self.future.done():
            return
        if error is None:
            self.future.set_result(value)
        else:
            self.future.set_exception(error)


class Callback:
    """What a transaction has to say to the event loop once it is committed."""

    __slots__ = ("_function",)
    hands_out: ClassVar[bool] = False

    def __init__(self, function: Callable[[], None]) -> None:
        self._function = function

    def deliver(self, value: Any, error: BaseException | None) -> None:
        self._function()


class Waiting(Protocol):
    """An operation that stays with the writer until its queue has something for it."""

    queue: int
    dead: bool
    hands_out: ClassVar[bool]

    def attempt(self, transaction: Transaction) -> Sequence[Any]: ...
    def deliver(self, value: Any, error: BaseException | None) -> None: ...


Outcome = tuple[Any, Any, BaseException | None]


def call_on(loop: asyncio.AbstractEventLoop, function: Callable[..., Any], *arguments: Any) -> None:
    try:
        loop.call_soon_threadsafe(function, *arguments)
    except RuntimeError:
        return  # the loop is closed: nobody is left to be told


class Writer:
    """`submit` and `park` are called on the event loop; all else runs in the thread."""

    def __init__(self, path: Path, full: bool) -> None:
        self.path = path
        self.trouble: Exception | None = None
        self.on_parked: Callable[[], None] = lambda: None
        self.on_settled: Callable[[Transaction], None] = lambda _: None
        self._full = full
        self._level = ""
        self._loop = asyncio.get_running_loop()
        self._queue: SimpleQueue[list[Any] | None] = SimpleQueue()
        self._turn: list[Any] = []
        self._turns_left = 0
        self._handed_out = 0
        """So many records were given to somebody lately: if their handlers are quick, they are settled soon."""
        self._parked: dict[int, list[Waiting]] = {}
        self._attempting: Waiting | None = None
        self._file = file.File(path)
        self._known = Known()
        self._stopping = False
        self._handover = Handover(self._loop, self._deliver)
        self._ended = asyncio.Event()
        self._thread = threading.Thread(target=self._run, name="hivewire-sqlite-writer", daemon=True)
        self._thread.start()

    # -- from the event loop

    def submit(self, function: Callable[..., Any], *arguments: Any, durable: bool = True) -> asyncio.Future[Any]:
        future: asyncio.Future[Any] = self._loop.create_future()
        self.put(Operation(future, function, arguments, durable))
        return future

    def park(self, waiting: Waiting) -> None:
        """Try it with the next transaction, and again whenever its queue is woken."""
        self.put(waiting)

    def do(self, function: Callable[..., Any], *arguments: Any) -> None:
        """From any thread: an operation whose outcome nobody awaits."""
        self._queue.put([Errand(function, arguments, durable=False)])

    def put(self, what: Any) -> None:
        """What one turn of the loop puts here goes to the thread together, and so into one commit; with what
        the next few turns put here, when records were handed out that may be settled in these turns."""
        if self._stopping:
            raise Closed(f"use {self.path}: it was closed")
        turn = self._turn
        if not turn:
            self._turns_left = _TURNS_TO_SETTLE[min(self._handed_out, 2)]
            self._handed_out = 0
            self._loop.call_soon(self._end_turn)
        turn.append(what)

    def _end_turn(self) -> None:
        self._turns_left -= 1
        if self._turns_left > 0:
            self._loop.call_soon(self._end_turn)
        elif self._turn:
            self._send_turn()

    def _send_turn(self) -> None:
        turn, self._turn = self._turn, []
        self._queue.put(turn)

    def waiting_queues(self) -> tuple[int, ...]:
        """Queues that somebody in this process waits for. From any thread."""
        return tuple(self._parked)

    async def close(self) -> None:
        if self._stopping:
            return
        self._stopping = True
        self._send_turn()
        self._queue.put(None)
        await self._ended.wait()
        self._thread.join()

    def _end(self) -> None:
        """On the event loop: the thread has nothing more to say."""
        self._handover.close()
        self._ended.set()

    # -- in the thread

    def _run(self) -> None:
        queue = self._queue
        while True:
            turns = [queue.get()]
            while len(turns) < _MOST_AT_ONCE and queue.qsize():
                turns.append(queue.get_nowait())
            burst = turns[0] if len(turns) == 1 else [item for turn in turns if turn is not None for item in turn]
            if burst:
                self._take_in(burst)
            if None in turns:
                break
            self._file.give_turn()
        self._file.close()
        call_on(self._loop, self._end)

    def _tell(self, outcomes: list[Outcome]) -> None:
        if outcomes:
            self._handover.put(outcomes)

    def _deliver(self, outcomes: list[Outcome]) -> None:
        """On the event loop."""
        for target, value, error in outcomes:
            try:
                if target.hands_out and error is None:
                    self._handed_out += len(value)  # before: who is told may ask for more at once
                target.deliver(value, error)
            except Exception:  # the others must be told
                log.exception("who waited for the file failed when told")

    def _take_in(self, burst: list[Any]) -> None:
        operations: list[Errand] = []
        fresh: set[int] = set()
        for item in burst:
            if isinstance(item, Errand):
                operations.append(item)
            else:
                self._parked.setdefault(item.queue, []).append(item)
                fresh.add(item.queue)
        self._burst(operations, fresh)
        if not fresh.isdisjoint(self._parked):
            self.on_parked()

    def _burst(self, operations: list[Errand], fresh: set[int]) -> None:
        try:
            transaction, outcomes = self._transaction(operations, fresh)
        except Exception as error:  # noqa: BLE001 - whatever it is, those who wait must be told
            self._failed(operations, fresh, error)
            return
        self._tell(outcomes)  # first: while the event loop wakes, the rest is done here
        self.trouble = None
        try:
            transaction.is_committed()
            self.on_settled(transaction)
        except Exception:  # it is in the file all the same, and this thread must go on
            self._known.forget()
            log.exception("what was committed could not be noted: it is looked up anew")

    def _failed(self, operations: list[Errand], fresh: set[int], error: Exception) -> None:
        """Nothing was stored. If one operation is to blame, the others are done without it."""
        if trouble.concerns_the_file(error):
            told = trouble.explain(error, "use", self.path)
            self.trouble = told
            if trouble.is_full(error):
                self._file.make_room()
            self._file.close()
            waiting = [item for queue in fresh for item in self._parked.pop(queue, ())]
            self._tell([(item, None, told) for item in (*operations, *waiting)])
        elif self._attempting is not None:
            culprit, self._attempting = self._attempting, None
            self._parked[culprit.queue].remove(culprit)
            log.error("take from a queue failed", exc_info=error)
            self._tell([(culprit, None, trouble.explain(error, "use", self.path))])
            self._burst(operations, fresh)
        elif len(operations) <= 1:
            log.error("an operation failed", exc_info=error)
            self._tell([(item, None, trouble.explain(error, "use", self.path)) for item in operations])
        else:
            for operation in operations:
                self._burst([operation], set())
            self._burst([], fresh)

    def _transaction(self, operations: list[Errand], fresh: set[int]) -> tuple[Transaction, list[Outcome]]:
        """What it returns is committed."""
        is_new = not self._file.is_open
        db = self._file.connection()
        if is_new:
            self._level = ""
            self._known.forget()
        self._synchronous(db, "FULL" if self._full and [1 for item in operations if item.durable] else "NORMAL")
        self._file.begin(file.PATIENCE_S if self.trouble is None else _PATIENCE_IN_TROUBLE_S)
        transaction = Transaction(db, self._file.cursor, self._known)
        outcomes: list[Outcome] = []
        try:
            transaction.begun()
            for item in operations:
                value = item.function(transaction, *item.arguments)
                if item.is_awaited:  # else nobody is woken for it
                    outcomes.append((item, value, None))
            storing.flush(transaction, self._parked)
            self._serve(transaction, fresh, outcomes)
            storing.write_fresh(transaction)
            transaction.write_back()
            transaction.cursor.execute("COMMIT")
        except BaseException:
            transaction.roll_back()
            raise
        if transaction.committed:
            # First, so that who is told that a life of his is over has nothing yet of what the next one took.
            outcomes[:0] = [(Callback(callback), None, None) for callback in transaction.committed]
        return transaction, outcomes

    def _serve(self, transaction: Transaction, fresh: set[int], outcomes: list[Outcome]) -> None:
        """Give what is there to those who wait for it, in the order in which they came."""
        looked_for = transaction.woken | fresh
        transaction.only_filled = transaction.filled - looked_for
        for queue in looked_for | transaction.filled:
            waiting = self._parked.get(queue)
            if waiting is None:
                continue
            served = 0
            for first in waiting:
                if not first.dead:
                    self._attempting = first
                    taken = first.attempt(transaction)
                    self._attempting = None
                    if not taken:
                        break
                    outcomes.append((first, taken, None))
                served += 1
            self._unpark(transaction, queue, waiting, served)

    def _unpark(self, transaction: Transaction, queue: int, waiting: list[Waiting], served: int) -> None:
        if served == len(waiting):
            del self._parked[queue]
        elif served:
            self._parked[queue] = waiting[served:]
        if served:
            transaction.undo.append((setitem, self._parked, queue, waiting))

    def _synchronous(self, db: sqlite3.Connection, level: str) -> None:
        if level != self._level:
            db.execute(f"PRAGMA synchronous = {level}")
            self._level = level
