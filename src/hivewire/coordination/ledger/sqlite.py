"""SQLite: one thread that writes and commits together what waits, two that read. Or memory, without a thread."""

from __future__ import annotations

import asyncio
import re
import sqlite3
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path
from queue import SimpleQueue
from typing import Any, Final, TypeVar

from hivewire.backends.sqlite import trouble
from hivewire.coordination.ledger.store import (
    Ddl,
    Given,
    Many,
    Positional,
    Query,
    Row,
    Script,
    Statement,
    Store,
    positional,
)
from hivewire.errors import BackendError, Closed, LedgerError

T = TypeVar("T")

_PATIENCE_S: Final = 10.0
_READERS: Final = 2
_MOST_AT_ONCE: Final = 1_000
_APPLICATION_ID: Final = 0x48574C31


class Connection:
    """One connection and the ledger's dialect on it. For one thread at a time."""

    def __init__(self, place: str, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._now = clock()
        # Made in the thread that opens the store, used by one other.
        self.db = sqlite3.connect(place, isolation_level=None, check_same_thread=False, timeout=_PATIENCE_S)
        try:
            # The same within a statement: called once in it, not for each row.
            self.db.create_function("hivewire_now", 0, lambda: self._now, deterministic=True)
            self.db.create_function("hivewire_lock", 1, lambda _: None)
            self.db.execute("PRAGMA foreign_keys = ON")
        except BaseException:
            self.db.close()
            raise

    def run(self, script: Script[T]) -> T:
        """The script, its statements one after another. Time stands still in it."""
        self._now = self._clock()
        try:
            statement = next(script)
            while True:
                statement = script.send(self._execute(statement))
        except StopIteration as stop:
            result: T = stop.value
            return result

    def _execute(self, statement: Statement) -> Sequence[Row]:
        if isinstance(statement, Given):
            text, arranged = given(statement.sql, statement.columns)
            return self.db.execute(text, arranged(statement.values)).fetchall()
        if isinstance(statement, Query):
            text, arranged = native(statement.sql)
            return self.db.execute(text, arranged(statement.arguments)).fetchall()
        if isinstance(statement, Many):
            text, arranged = native(statement.sql)
            self.db.executemany(text, map(arranged, statement.rows))
        else:
            for part in _statements(statement):
                self.db.execute(part)
        return ()


@lru_cache(maxsize=1_000)
def native(sql: str) -> Positional:
    """A statement of the common SQL as SQLite takes it."""
    sql = sql.replace("hivewire_begun()", "hivewire_now()").replace(" AS json)", " AS text)")
    sql = sql.replace("hivewire_tables()", "sqlite_schema")
    return positional(re.sub(r" FOR (UPDATE|SHARE|NO KEY UPDATE)( SKIP LOCKED)?\b", "", sql))


@lru_cache(maxsize=100)
def given(sql: str, columns: tuple[tuple[str, str], ...]) -> Positional:
    """A statement on a given row."""
    values = ", ".join(f"${number} AS {name}" for number, (name, _) in enumerate(columns, 1))
    return native(sql.replace("hivewire_given()", f"(SELECT {values}) AS given"))


def _owner(db: sqlite3.Connection) -> int:
    found: int = db.execute("PRAGMA application_id").fetchone()[0]
    return found


def _statements(ddl: Ddl) -> list[str]:
    """One by one: `executescript` would commit first. A trigger has semicolons inside."""
    parts, part = [], ""
    for piece in ddl.text.split(";")[:-1]:
        part += f"{piece};"
        if sqlite3.complete_statement(part):
            parts.append(part)
            part = ""
    if part.strip():
        raise ValueError(f"a statement without an end: {part[:80]}")
    return parts


class _Errand:
    __slots__ = ("future", "make", "single")

    def __init__(self, future: asyncio.Future[Any], make: Callable[[], Script[Any]], single: bool) -> None:
        self.future = future
        self.make = make
        self.single = single


Outcome = tuple[asyncio.Future[Any], Any, BaseException | None]


class SQLiteStore(Store):
    """The tables in one file, shared by any number of processes of one host."""

    kind = "sqlite"
    dialect = "sqlite"
    durability = "disk"

    def __init__(self, path: Path, *, clock: Callable[[], float] = time.time) -> None:
        self.path = path
        self._clock = clock
        self._loop: asyncio.AbstractEventLoop | None = None
        self._turns: SimpleQueue[list[_Errand] | None] = SimpleQueue()
        self._turn: list[_Errand] = []
        self._writer: threading.Thread | None = None
        self._readers: ThreadPoolExecutor | None = None
        self._free: SimpleQueue[Connection] = SimpleQueue()
        self._connection: Connection | None = None

    async def open(self) -> None:
        if self._loop is not None:
            return
        loop = asyncio.get_running_loop()
        self._connection = await asyncio.to_thread(self._connect)
        self._loop = loop
        self._readers = ThreadPoolExecutor(_READERS, thread_name_prefix="hivewire-ledger-reader")
        self._writer = threading.Thread(target=self._write_on, name="hivewire-ledger-writer", daemon=True)
        self._writer.start()

    async def close(self) -> None:
        loop, self._loop = self._loop, None
        if loop is None or self._writer is None or self._readers is None:
            return
        self._end_turn()
        self._turns.put(None)
        writer, readers = self._writer, self._readers

        def end() -> None:
            writer.join()
            readers.shutdown(wait=True)
            while not self._free.empty():
                self._free.get().db.close()

        await asyncio.shield(loop.run_in_executor(None, end))

    async def read(self, make: Callable[[], Script[T]]) -> T:
        if self._loop is None or self._readers is None:
            raise Closed(f"read {self.path}: the ledger was closed")
        return await self._loop.run_in_executor(self._readers, self._read, make)

    async def write(self, make: Callable[[], Script[T]], *, single: bool = False) -> T:
        if self._loop is None:
            raise Closed(f"write to {self.path}: the ledger was closed")
        future: asyncio.Future[T] = self._loop.create_future()
        self._turn.append(_Errand(future, make, single))
        if len(self._turn) == 1:
            self._loop.call_soon(self._end_turn)
        return await future

    async def storage_size_bytes(self) -> int:
        return int((await self.read(_size))[0][0])

    def _end_turn(self) -> None:
        """What one turn of the loop asks for is one commit at most."""
        turn, self._turn = self._turn, []
        if turn:
            self._turns.put(turn)

    # -- in the threads

    def _connect(self) -> Connection:
        try:
            self.path.absolute().parent.mkdir(parents=True, exist_ok=True)
            connection = Connection(str(self.path), self._clock)
            try:
                self.prepare(connection.db)
            except BaseException:
                connection.db.close()
                raise
        except (sqlite3.Error, OSError) as error:
            raise trouble.explain(error, "open the ledger", self.path) from error
        return connection

    def prepare(self, db: sqlite3.Connection) -> None:
        """Called for each new connection."""
        self._check_owner(db)
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("PRAGMA synchronous = FULL")

    def _check_owner(self, db: sqlite3.Connection) -> None:
        if _owner(db) == _APPLICATION_ID:
            return
        db.execute("BEGIN IMMEDIATE")  # else another who makes it at this moment would be taken for another program
        try:
            owner = _owner(db)
            if owner != _APPLICATION_ID and (owner or db.execute("SELECT count(*) FROM sqlite_schema").fetchone()[0]):
                raise BackendError(
                    f"open the ledger {self.path}: it is a database of another program; name another file"
                )
            db.execute(f"PRAGMA application_id = {_APPLICATION_ID}")
            db.execute("COMMIT")
        finally:
            if db.in_transaction:
                db.execute("ROLLBACK")

    def _read(self, make: Callable[[], Script[T]]) -> T:
        try:
            connection = self._free.get_nowait() if not self._free.empty() else self._connect()
            try:
                connection.db.execute("BEGIN")
                try:
                    return connection.run(make())
                finally:
                    connection.db.execute("ROLLBACK")
            finally:
                self._free.put(connection)
        except sqlite3.Error as error:
            raise trouble.explain(error, "read the ledger", self.path) from error

    def _write_on(self) -> None:
        while True:
            turns = [self._turns.get()]
            turns.extend(self._turns.get_nowait() for _ in range(min(self._turns.qsize(), _MOST_AT_ONCE)))
            errands = [errand for turn in turns if turn is not None for errand in turn if not errand.future.cancelled()]
            if errands:
                self._deliver(self._commit(errands))
            if None in turns:
                break
        if self._connection is not None:
            self._connection.db.close()
            self._connection = None

    def _deliver(self, outcomes: list[Outcome]) -> None:
        loop = outcomes[0][0].get_loop()
        if not loop.is_closed():
            loop.call_soon_threadsafe(_settle, outcomes)

    def _commit(self, errands: list[_Errand]) -> list[Outcome]:
        try:
            if self._connection is None:
                self._connection = self._connect()
            return commit_together(self._connection, errands)
        except Exception as error:  # noqa: BLE001 - whatever it is, those who wait must be told
            if self._connection is not None:  # the file may be another one by the next time
                self._connection.db.close()
                self._connection = None
            told = trouble.explain(error, "write to the ledger", self.path)
            return [(errand.future, None, told) for errand in errands]


def commit_together(connection: Connection, errands: Sequence[_Errand]) -> list[Outcome]:
    """One transaction for all; an errand that raises takes nothing back but its own changes."""
    db = connection.db
    db.execute("BEGIN IMMEDIATE")
    try:
        outcomes = [_outcome(connection, errand) for errand in errands]
        db.execute("COMMIT")
    finally:
        if db.in_transaction:
            db.execute("ROLLBACK")
    return outcomes


def _outcome(connection: Connection, errand: _Errand) -> Outcome:
    db = connection.db
    if not errand.single:
        db.execute("SAVEPOINT errand")
    try:
        result = connection.run(errand.make())
    except Exception as error:
        if isinstance(error, sqlite3.Error) and trouble.concerns_the_file(error):
            raise
        if not errand.single:
            db.execute("ROLLBACK TO errand")
            db.execute("RELEASE errand")
        told = LedgerError(f"the ledger refused: {error}") if isinstance(error, sqlite3.Error) else error
        return errand.future, None, told
    if not errand.single:
        db.execute("RELEASE errand")
    return errand.future, result, None


def _settle(outcomes: Sequence[Outcome]) -> None:
    for future, result, error in outcomes:
        if future.done():
            continue
        if error is None:
            future.set_result(result)
        else:
            future.set_exception(error)


class MemoryStore(Store):
    """The tables in this process alone, on the event loop: nothing waits, so it runs under virtual time too."""

    kind = "memory"
    dialect = "sqlite"
    durability = "volatile"

    def __init__(self, *, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._connection: Connection | None = None

    async def open(self) -> None:
        if self._connection is None:
            self._connection = Connection(":memory:", self._clock)

    async def read(self, make: Callable[[], Script[T]]) -> T:
        return self.look(make)

    async def write(self, make: Callable[[], Script[T]], *, single: bool = False) -> T:
        return self.run(make)

    def look(self, make: Callable[[], Script[T]]) -> T:
        """Run a script that changes nothing, at once: nobody comes between its statements."""
        if self._connection is None:
            raise Closed("use the ledger in memory: it was closed")
        try:
            return self._connection.run(make())
        except sqlite3.Error as error:
            raise trouble.explain(error, "use the ledger in memory", Path(":memory:")) from error

    def run(self, make: Callable[[], Script[T]]) -> T:
        """Run a script as one transaction, at once."""
        if self._connection is None:
            raise Closed("use the ledger in memory: it was closed")
        db = self._connection.db
        db.execute("BEGIN IMMEDIATE")
        try:
            result = self._connection.run(make())
            db.execute("COMMIT")
        except sqlite3.Error as error:
            raise trouble.explain(error, "use the ledger in memory", Path(":memory:")) from error
        finally:
            if db.in_transaction:
                db.execute("ROLLBACK")
        return result

    def image(self) -> bytes:
        """All that it holds now, for `load`."""
        if self._connection is None:
            raise Closed("use the ledger in memory: it was closed")
        return self._connection.db.serialize()

    def load(self, image: bytes) -> None:
        """Hold what another one held."""
        if self._connection is None:
            raise Closed("use the ledger in memory: it was closed")
        self._connection.db.deserialize(image)

    async def storage_size_bytes(self) -> int:
        return int((await self.read(_size))[0][0])

    async def close(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.db.close()


def _size() -> Script[Sequence[Row]]:
    return (yield Query("SELECT page_count * page_size FROM pragma_page_count, pragma_page_size"))
