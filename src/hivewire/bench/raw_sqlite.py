"""SQLite, with no engine: one writer thread that commits in groups; insert, claim, delete."""

from __future__ import annotations

import asyncio
import sqlite3
import threading
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from operator import itemgetter
from pathlib import Path
from queue import Empty, SimpleQueue
from time import time
from typing import Any, ClassVar

import msgspec

from hivewire.bench.workload import Peer, Tally, Wire, answer_to, build

CLAIM = 1_000
REPLIES = "replies"
Rows = list[tuple[int, bytes]]


class Ask:
    """One request to the writer thread: bodies to insert (each with its queue), a range to delete, or rows to claim."""

    __slots__ = ("answer", "bodies", "claim", "delete", "result")

    def __init__(
        self,
        answer: asyncio.Future[Any],
        bodies: Sequence[tuple[str, bytes]] = (),
        delete: tuple[str, int, int] | None = None,
        claim: str = "",
    ) -> None:
        self.answer = answer
        self.bodies = bodies
        self.delete = delete
        self.claim = claim
        self.result: Rows = []


class Writer:
    """The thread that owns the connection. All that waits goes into one transaction; a claim waits there for rows."""

    def __init__(self, path: Path, synchronous: str, loop: asyncio.AbstractEventLoop, *, many: bool) -> None:
        self.asks: SimpleQueue[Ask | None] = SimpleQueue()
        self._loop = loop
        self._path = path
        self._synchronous = synchronous
        self._many = many
        """Queues: then there is an index over them."""
        self._cursor: dict[str, int] = {}
        """Of each queue: everything up to this id is claimed."""
        self._unclaimed: dict[str, int] = {}
        self._thread = threading.Thread(target=self._run, name="sqlite-wal", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self.asks.put(None)
        self._thread.join()

    def _run(self) -> None:
        connection = sqlite3.connect(self._path, isolation_level=None)
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute(f"PRAGMA synchronous = {self._synchronous}")
        connection.execute(
            "CREATE TABLE q (id INTEGER PRIMARY KEY AUTOINCREMENT, queue TEXT, claimed_at REAL, body BLOB NOT NULL)"
        )
        if self._many:
            connection.execute("CREATE INDEX by_queue ON q (queue, id)")
        claims: dict[str, Ask] = {}
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

    def _commit(self, connection: sqlite3.Connection, asks: list[Ask], claims: dict[str, Ask]) -> None:
        answered = []
        connection.execute("BEGIN IMMEDIATE")
        for ask in asks:
            if ask.claim:
                claims[ask.claim] = ask
                continue
            if ask.bodies:
                connection.executemany("INSERT INTO q (queue, body) VALUES (?, ?)", ask.bodies)
                for queue, number in Counter(map(itemgetter(0), ask.bodies)).items():
                    self._unclaimed[queue] = self._unclaimed.get(queue, 0) + number
            if ask.delete is not None:
                connection.execute("DELETE FROM q WHERE queue = ? AND id BETWEEN ? AND ?", ask.delete)
            answered.append(ask)
        for queue in [queue for queue in claims if self._unclaimed.get(queue)]:
            claim = claims.pop(queue)
            claim.result = self._claim(connection, queue)
            answered.append(claim)
        connection.execute("COMMIT")
        self._loop.call_soon_threadsafe(self._answer, answered)

    def _claim(self, connection: sqlite3.Connection, queue: str) -> Rows:
        rows: Rows = connection.execute(
            "SELECT id, body FROM q WHERE queue = ? AND id > ? ORDER BY id LIMIT ?",
            (queue, self._cursor.get(queue, 0), CLAIM),
        ).fetchall()
        first, last = rows[0][0], rows[-1][0]
        connection.execute(
            "UPDATE q SET claimed_at = ? WHERE queue = ? AND id BETWEEN ? AND ?", (time(), queue, first, last)
        )
        self._cursor[queue] = last
        self._unclaimed[queue] -= len(rows)
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
        self._writer = Writer(folder / "raw.db", self.synchronous, self._loop, many=self.queues > 1)
        self._encode = msgspec.json.Encoder().encode
        self._decode = msgspec.json.Decoder(Wire).decode
        self._replies: dict[str, asyncio.Future[dict[str, Any]]] = {}
        self._listener: asyncio.Task[None] | None = None

    def _ask(
        self,
        bodies: Sequence[tuple[str, bytes]] = (),
        delete: tuple[str, int, int] | None = None,
        claim: str = "",
    ) -> asyncio.Future[Any]:
        answer: asyncio.Future[Any] = self._loop.create_future()
        self._writer.asks.put(Ask(answer, bodies, delete, claim))
        return answer

    async def send(self, number: int, sender: str) -> None:
        await self._ask([(self.queue_of(number), self._encode(build(number, sender)))])

    async def send_all(self, numbers: range, sender: str) -> None:
        encode, queue_of = self._encode, self.queue_of
        await self._ask([(queue_of(number), encode(build(number, sender))) for number in numbers])

    async def consume(self, tally: Tally, stop: asyncio.Event) -> None:
        note, decode = tally.note, self._decode

        async def each(queue: str) -> None:
            async for rows in self._rows(queue, stop):
                for _, body in rows:
                    note(decode(body).content)

        async with asyncio.TaskGroup() as group:
            for queue in self.queue_names():
                group.create_task(each(queue))

    async def _rows(self, queue: str, stop: asyncio.Event) -> AsyncIterator[Rows]:
        """What is claimed; it is deleted when the next is asked for."""
        stopping = asyncio.create_task(stop.wait())
        deleted: asyncio.Future[Any] | None = None
        while not stop.is_set():
            claim = self._ask(claim=queue)
            await asyncio.wait({claim, stopping}, return_when=asyncio.FIRST_COMPLETED)
            if not claim.done():
                break
            rows: Rows = claim.result()
            yield rows
            deleted = self._ask(delete=(queue, rows[0][0], rows[-1][0]))
        if deleted is not None:
            await deleted

    async def ask(self, number: int) -> dict[str, Any]:
        if self._listener is None:
            self._listener = asyncio.create_task(self._listen())
        message = build(number, "p0")
        reply = self._replies[message["id"]] = self._loop.create_future()
        self._ask([(self.sink, self._encode(message))])
        content: dict[str, Any] = await reply
        return content

    async def _listen(self) -> None:
        async for rows in self._rows(REPLIES, asyncio.Event()):
            for _, body in rows:
                message = self._decode(body)
                self._replies.pop(message.in_reply_to or "").set_result(message.content)

    async def answer(self, stop: asyncio.Event) -> None:
        async for rows in self._rows(self.sink, stop):
            for _, body in rows:
                asked = self._decode(body)
                self._ask([(REPLIES, self._encode(answer_to(asked.id, asked.content)))])

    async def close(self) -> None:
        if self._listener is not None:
            self._listener.cancel()
        self._writer.stop()


class SqliteWalNormal(SqliteWal):
    """The same at `synchronous=NORMAL`: survives a kill of the process, not a power cut."""

    name: ClassVar[str] = "sqlite-wal NORMAL"
    synchronous: ClassVar[str] = "NORMAL"
