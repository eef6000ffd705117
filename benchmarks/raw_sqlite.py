"""SQLite, with no engine: one writer thread that commits in groups; insert, claim, delete."""

from __future__ import annotations

import asyncio
import sqlite3
import threading
from collections.abc import Sequence
from pathlib import Path
from queue import Empty, SimpleQueue
from time import time
from typing import Any, ClassVar

import msgspec

from benchmarks.workload import Peer, Tally, Wire, build

CLAIM = 1_000
Rows = list[tuple[int, bytes]]


class Ask:
    """One request to the writer thread: bodies to insert, a range to delete, or rows to claim."""

    __slots__ = ("answer", "bodies", "delete", "is_claim", "result")

    def __init__(
        self,
        answer: asyncio.Future[Any],
        bodies: Sequence[tuple[bytes]] = (),
        delete: tuple[int, int] | None = None,
        *,
        is_claim: bool = False,
    ) -> None:
        self.answer = answer
        self.bodies = bodies
        self.delete = delete
        self.is_claim = is_claim
        self.result: Rows = []


class Writer:
    """The thread that owns the connection. All that waits goes into one transaction; a claim waits there for rows."""

    def __init__(self, path: Path, synchronous: str, loop: asyncio.AbstractEventLoop) -> None:
        self.asks: SimpleQueue[Ask | None] = SimpleQueue()
        self._loop = loop
        self._path = path
        self._synchronous = synchronous
        self._cursor = 0  # everything up to this id is claimed
        self._newest = 0
        self._thread = threading.Thread(target=self._run, name="sqlite-wal", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self.asks.put(None)
        self._thread.join()

    def _run(self) -> None:
        connection = sqlite3.connect(self._path, isolation_level=None)
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute(f"PRAGMA synchronous = {self._synchronous}")
        connection.execute("CREATE TABLE q (id INTEGER PRIMARY KEY AUTOINCREMENT, claimed_at REAL, body BLOB NOT NULL)")
        claims: list[Ask] = []
        while True:
            group = [self.asks.get()]
            try:
                while True:
                    group.append(self.asks.get_nowait())
            except Empty:
                pass
            asks = [ask for ask in group if ask is not None]
            self._commit(connection, asks, claims)
            if len(asks) < len(group):
                connection.close()
                return

    def _commit(self, connection: sqlite3.Connection, asks: list[Ask], claims: list[Ask]) -> None:
        answered = []
        connection.execute("BEGIN IMMEDIATE")
        for ask in asks:
            if ask.is_claim:
                claims.append(ask)
                continue
            if ask.bodies:
                connection.executemany("INSERT INTO q (body) VALUES (?)", ask.bodies)
                self._newest += len(ask.bodies)
            if ask.delete is not None:
                connection.execute("DELETE FROM q WHERE id BETWEEN ? AND ?", ask.delete)
            answered.append(ask)
        while claims and self._newest > self._cursor:
            claim = claims.pop(0)
            claim.result = self._claim(connection)
            answered.append(claim)
        connection.execute("COMMIT")
        self._loop.call_soon_threadsafe(self._answer, answered)

    def _claim(self, connection: sqlite3.Connection) -> Rows:
        rows = connection.execute(
            "SELECT id, body FROM q WHERE id > ? ORDER BY id LIMIT ?", (self._cursor, CLAIM)
        ).fetchall()
        connection.execute("UPDATE q SET claimed_at = ? WHERE id BETWEEN ? AND ?", (time(), rows[0][0], rows[-1][0]))
        self._cursor = rows[-1][0]
        return rows

    @staticmethod
    def _answer(asks: list[Ask]) -> None:
        for ask in asks:
            if not ask.answer.done():
                ask.answer.set_result(ask.result)


class SqliteWal(Peer):
    """What SQLite can do at `synchronous=FULL`, the default of ours."""

    name: ClassVar[str] = "sqlite-wal"
    synchronous: ClassVar[str] = "FULL"

    async def open(self, folder: Path) -> None:
        self._loop = asyncio.get_running_loop()
        self._writer = Writer(folder / "raw.db", self.synchronous, self._loop)
        self._encode = msgspec.json.Encoder().encode
        self._decode = msgspec.json.Decoder(Wire).decode

    def _ask(
        self, bodies: Sequence[tuple[bytes]] = (), delete: tuple[int, int] | None = None, *, is_claim: bool = False
    ) -> asyncio.Future[Any]:
        answer: asyncio.Future[Any] = self._loop.create_future()
        self._writer.asks.put(Ask(answer, bodies, delete, is_claim=is_claim))
        return answer

    async def send(self, number: int, sender: str) -> None:
        await self._ask([(self._encode(build(number, sender)),)])

    async def send_all(self, numbers: range, sender: str) -> None:
        encode = self._encode
        await self._ask([(encode(build(number, sender)),) for number in numbers])

    async def consume(self, tally: Tally, stop: asyncio.Event) -> None:
        stopping = asyncio.create_task(stop.wait())
        note, decode = tally.note, self._decode
        deleted: asyncio.Future[Any] | None = None
        while not stop.is_set():
            claim = self._ask(is_claim=True)
            await asyncio.wait({claim, stopping}, return_when=asyncio.FIRST_COMPLETED)
            if not claim.done():
                break
            rows: Rows = claim.result()
            for _, body in rows:
                note(decode(body).content)
            deleted = self._ask(delete=(rows[0][0], rows[-1][0]))
        if deleted is not None:
            await deleted

    async def close(self) -> None:
        self._writer.stop()


class SqliteWalNormal(SqliteWal):
    """The same at `synchronous=NORMAL`: survives a kill of the process, not a power cut."""

    name: ClassVar[str] = "sqlite-wal NORMAL"
    synchronous: ClassVar[str] = "NORMAL"
