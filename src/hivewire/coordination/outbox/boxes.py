"""What the user's transaction writes: a message to be sent, or the note that one was handled."""

from __future__ import annotations

import inspect
import sqlite3
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, Final, TypeVar

import msgspec

from hivewire.codec.names import split_address
from hivewire.codec.values import check_json
from hivewire.codec.wire import encode
from hivewire.coordination.ledger.store import positional
from hivewire.coordination.outbox.tables import LANES, LOCK, Dialect, tables
from hivewire.engine.core import lane_key
from hivewire.errors import MessageError
from hivewire.message import Message

T = TypeVar("T")
Connection = Any
"""Of `asyncpg` (or of its pool), or of `sqlite3`."""

_PUT: Final = (
    "INSERT INTO hivewire_outbox (id, lane, body, created_at) VALUES ($1, $2, $3, $4) ON CONFLICT (id) DO NOTHING"
)
_TAKE: Final = (
    "INSERT INTO hivewire_inbox (consumer, id, handled_at) VALUES ($1, $2, $3) "
    "ON CONFLICT (consumer, id) DO NOTHING RETURNING 1"
)
_FOUND: Final = "SELECT result FROM hivewire_inbox WHERE consumer = $1 AND id = $2"
_KEEP: Final = "UPDATE hivewire_inbox SET result = $3 WHERE consumer = $1 AND id = $2"
_FORGET: Final = "DELETE FROM hivewire_inbox WHERE consumer = $1 AND id = $2"
_MOST_RESULT: Final = 1_000_000


def lane_of(message: Message) -> int:
    """Equal for messages that must be sent in their order."""
    return sum("\0".join(order_of(message)).encode()) % LANES


def order_of(message: Message) -> tuple[str, str]:
    """The recipient's queue, and the key in it."""
    agent, instance = split_address(message.to)
    return agent, lane_key(message, instance)


class Outbox:
    """Messages that are sent if, and only if, the user's transaction is committed.

    `put` writes them as rows, on the user's connection; a `Relay` sends what was committed. Messages of one recipient
    and key are sent in the order of their `put`. `max_message_size`: in bytes, as the setting of the protocol.
    """

    def __init__(self, *, max_message_size: int = 1024 * 1024) -> None:
        self._max_size = max_message_size

    @property
    def blocking(self) -> BlockingOutbox:
        """The same for plain functions, with connections of `sqlite3`."""
        return BlockingOutbox(self)

    @staticmethod
    def tables(dialect: Dialect) -> str:
        """The SQL that makes the tables of outbox and inbox, for your own migrations."""
        return tables(dialect)

    async def create_tables(self, connection: Connection) -> None:
        """Make the tables that are not there. Any number of processes may do so at once."""
        if isinstance(connection, sqlite3.Connection):
            self.blocking.create_tables(connection)
            return
        async with connection.transaction():  # without the lock, two that make one table at once get an error
            await connection.execute("SELECT pg_advisory_xact_lock($1)", LOCK)
            await connection.execute(tables("postgres"))

    def row(self, message: Message) -> dict[str, Any]:
        """The row to be inserted into `hivewire_outbox`, for other libraries than `asyncpg` and `sqlite3`.

        Raises `MessageError` for a message that cannot be sent.
        """
        body = encode(message, self._max_size)
        if not message.to:
            raise MessageError(f"put message {message.id}: it has no recipient; name one with `to`")
        return {"id": message.id, "lane": lane_of(message), "body": body, "created_at": time.time()}

    async def put(self, connection: Connection, *messages: Message) -> None:
        """Write the messages into the transaction that is open on this connection.

        One whose id is there already is not written again. Raises `MessageError` when no transaction is open, and for
        a message that cannot be sent; nothing is written then.
        """
        if isinstance(connection, sqlite3.Connection):
            self.blocking.put(connection, *messages)
            return
        rows = [tuple(self.row(message).values()) for message in messages]
        _check_open(connection.is_in_transaction(), "put a message")
        await connection.executemany(_PUT, rows)


class BlockingOutbox:
    """`Outbox` for plain functions."""

    def __init__(self, outbox: Outbox) -> None:
        self._outbox = outbox

    def create_tables(self, connection: sqlite3.Connection) -> None:
        """As `Outbox.create_tables`. Commits what is open on the connection."""
        connection.executescript(tables("sqlite"))

    def put(self, connection: sqlite3.Connection, *messages: Message) -> None:
        """As `Outbox.put`."""
        rows = [tuple(self._outbox.row(message).values()) for message in messages]
        _check_open(_can_begin(connection), "put a message")
        text, arranged = positional(_PUT)
        connection.executemany(text, map(arranged, rows))


class Inbox:
    """Messages that were handled, kept in the transaction of what the handler writes: a message that comes again
    after a crash, or after its dead letter was replayed, is recognised.

    `consumer` names what handles them; two consumers in one database each handle a message once.
    """

    def __init__(self, consumer: str) -> None:
        if not consumer or len(consumer.encode()) > 256:
            raise MessageError(f"an inbox's consumer is a name of 1 to 256 bytes, not {consumer!r:.300}")
        self._consumer = consumer

    @property
    def blocking(self) -> BlockingInbox:
        """The same for plain functions, with connections of `sqlite3`."""
        return BlockingInbox(self._consumer)

    async def take(self, connection: Connection, message: Message) -> bool:
        """True: it was not handled before, and will not be again if this transaction is committed.

        While another transaction has taken the message and is not ended, this waits for its end. Raises
        `MessageError` when no transaction is open.
        """
        if isinstance(connection, sqlite3.Connection):
            return self.blocking.take(connection, message)
        _check_open(connection.is_in_transaction(), "take a message")
        return bool(await connection.fetch(_TAKE, self._consumer, message.id, time.time()))

    async def once(self, connection: Connection, message: Message, fn: Callable[[], Any]) -> Any:
        """What `fn` (plain or async) returns (a JSON value), kept in this transaction; for a message that was handled
        before, what it returned then, without calling it. One whose `fn` raises was not handled, also where the
        transaction is committed all the same."""
        if not await self.take(connection, message):
            return self._read(await self._found(connection, message))
        try:
            value = fn()
            result = await value if inspect.isawaitable(value) else value
            text = _written(result)
        except BaseException:
            if _is_open(connection):  # else it was rolled back already
                with suppress(Exception):  # of a transaction that an error of the server has ended nothing is kept
                    await self._run(connection, _FORGET, message)
            raise
        await self._run(connection, _KEEP, message, text)
        return result

    async def _found(self, connection: Connection, message: Message) -> Any:
        rows = await self._run(connection, _FOUND, message)
        return rows[0][0]

    async def _run(self, connection: Connection, sql: str, message: Message, *rest: Any) -> Any:
        arguments = (self._consumer, message.id, *rest)
        if isinstance(connection, sqlite3.Connection):
            return _executed(connection, sql, arguments)
        return await connection.fetch(sql, *arguments)

    @staticmethod
    def _read(result: str | None) -> Any:
        return None if result is None else msgspec.json.decode(result)


class BlockingInbox:
    """`Inbox` for plain functions."""

    def __init__(self, consumer: str) -> None:
        self._consumer = consumer

    def take(self, connection: sqlite3.Connection, message: Message) -> bool:
        """As `Inbox.take`."""
        _check_open(_can_begin(connection), "take a message")
        arguments = (self._consumer, message.id, time.time())
        return bool(_executed(connection, _TAKE, arguments))

    def once(self, connection: sqlite3.Connection, message: Message, fn: Callable[[], T]) -> T:
        """As `Inbox.once`."""
        if not self.take(connection, message):
            rows = _executed(connection, _FOUND, (self._consumer, message.id))
            found: T = Inbox._read(rows[0][0])
            return found
        try:
            result = fn()
            text = _written(result)
        except BaseException:
            if connection.in_transaction:  # else it was rolled back already
                with suppress(sqlite3.Error):
                    _executed(connection, _FORGET, (self._consumer, message.id))
            raise
        _executed(connection, _KEEP, (self._consumer, message.id, text))
        return result


def _executed(connection: sqlite3.Connection, sql: str, arguments: Sequence[Any]) -> list[Any]:
    text, arranged = positional(sql)
    return connection.execute(text, arranged(arguments)).fetchall()


def _written(result: Any) -> str:
    check_json(result, _MOST_RESULT)
    return msgspec.json.encode(result).decode()


def _is_open(connection: Connection) -> bool:
    """Whether a transaction is open."""
    if isinstance(connection, sqlite3.Connection):
        return connection.in_transaction
    return bool(connection.is_in_transaction())


def _can_begin(connection: sqlite3.Connection) -> bool:
    """Whether a transaction is open, or will be with the first change."""
    if connection.in_transaction:
        return True
    autocommit = getattr(connection, "autocommit", -1)  # from Python 3.12 on; -1: as before, by isolation_level
    return connection.isolation_level is not None if autocommit == -1 else not autocommit


def _check_open(is_open: bool, doing: str) -> None:
    if not is_open:
        raise MessageError(
            f"{doing}: no transaction is open on this connection, so that the message could not be undone with your "
            "own rows; begin one (asyncpg: `async with connection.transaction():`, sqlite3: `BEGIN`)"
        )
