"""PostgreSQL, by asyncpg."""

from __future__ import annotations

import asyncio
import random
import ssl
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from typing import Final, TypeVar

import asyncpg

from hivewire.coordination.ledger.pool import Answer, Connection, Limits, Pool
from hivewire.coordination.ledger.store import Many, Query, Row, Script, Statement, Store
from hivewire.errors import BackendError, Closed, ConnectionLost, LedgerError, TimedOut
from hivewire.settings import PostgresSettings

T = TypeVar("T")

_PATIENCE_S: Final = 30.0
_CONNECT_S: Final = 5.0
_FIRST_PAUSE_S: Final = 0.05
_LONGEST_PAUSE_S: Final = 1.0
_TABLES: Final = "(SELECT tablename::text AS name FROM pg_tables WHERE schemaname = current_schema()) AS known"
_NOW: Final = "CAST(extract(epoch FROM {}()) AS double precision)"

_LOST: Final = (
    asyncpg.PostgresConnectionError,
    asyncpg.OperatorInterventionError,  # shut down, crashed, starting; a query that is cancelled comes before
    asyncpg.TooManyConnectionsError,
    asyncpg.ReadOnlySQLTransactionError,  # a standby: the primary has moved
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,
    OSError,
    TimeoutError,
    EOFError,
)
_AGAIN: Final = (asyncpg.SerializationError, asyncpg.DeadlockDetectedError, asyncpg.InvalidCachedStatementError)
"""Nothing was changed, and the same script will most likely work."""


class _Again(ConnectionLost):
    """To be tried again at once."""


class PostgresStore(Store):
    """The tables in one schema of one database.

    A server that goes away is waited for up to 30 s; each try runs the script anew.
    """

    kind = "postgres"
    dialect = "postgres"
    durability = "disk"

    def __init__(self, settings: PostgresSettings, *, patience_s: float = _PATIENCE_S) -> None:
        self._settings = settings
        self._patience_s = patience_s
        self.rows_at_once = min(settings.batch_size, 1_000)
        self.schema = settings.schema
        self.place = f"{settings.host}:{settings.port}/{settings.db}"
        self._pool: Pool | None = None

    async def open(self) -> None:
        if self._pool is not None:
            return
        pool = self._pool = Pool(
            self._connect,
            Limits(
                most=self._settings.max_conns,
                idle=self._settings.idle_conns,
                lifetime_s=self._settings.conn_max_lifetime_s,
                idle_time_s=self._settings.conn_max_idle_time_s,
            ),
        )
        try:
            with _translated("open the ledger", self.place):
                async with pool.connection():
                    pass
        except BaseException:
            self._pool = None
            await pool.close(0.0)
            raise

    async def close(self) -> None:
        pool, self._pool = self._pool, None
        if pool is not None:
            await pool.close()

    async def read(self, make: Callable[[], Script[T]]) -> T:
        return await self._patiently("read the ledger", make, single=True)

    async def write(self, make: Callable[[], Script[T]], *, single: bool = False) -> T:
        return await self._patiently("write to the ledger", make, single=single)

    async def storage_size_bytes(self) -> int:
        return int((await self.read(_size))[0][0])

    async def _patiently(self, doing: str, make: Callable[[], Script[T]], *, single: bool) -> T:
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self._patience_s
        pause_s = _FIRST_PAUSE_S
        while True:
            try:
                return await self._once(doing, make(), single=single)
            except ConnectionLost as error:
                if isinstance(error, Closed) or loop.time() + pause_s > deadline:
                    raise
                await asyncio.sleep(0 if isinstance(error, _Again) else random.uniform(0, pause_s))
                pause_s = min(pause_s * 2, _LONGEST_PAUSE_S)

    async def _once(self, doing: str, script: Script[T], *, single: bool) -> T:
        if self._pool is None:
            raise Closed(f"{doing} {self.place}: it was closed")
        with _translated(doing, self.place):
            async with self._pool.connection() as connection:
                if single:
                    return await _run(connection, script)
                async with connection.transaction():
                    return await _run(connection, script)

    async def _connect(self) -> Connection:
        settings = self._settings
        milliseconds = int(settings.statement_timeout_s * 1000)
        return await asyncpg.connect(
            host=settings.host,
            port=settings.port,
            database=settings.db,
            user=settings.user,
            password=settings.password.reveal() or None,
            ssl=tls_of(settings),
            timeout=_CONNECT_S,
            command_timeout=settings.statement_timeout_s + 5.0,
            statement_cache_size=100 if settings.prepared_stmts else 0,
            server_settings={
                "search_path": f'"{settings.schema}"',
                "statement_timeout": str(milliseconds),
                "application_name": "hivewire",
                "synchronous_commit": "on",  # what is stored is on the disk, whatever the server's default
            },
        )


async def _run(connection: Connection, script: Script[T]) -> T:
    try:
        statement = next(script)
        while True:
            statement = script.send(await _execute(connection, statement))
    except StopIteration as stop:
        result: T = stop.value
        return result
    except (LedgerError, BackendError) as error:
        raise Answer(error) from error


async def _execute(connection: Connection, statement: Statement) -> Sequence[Row]:
    if isinstance(statement, Query):
        rows: Sequence[Row] = await connection.fetch(native(statement.sql), *statement.arguments)
        return rows
    if isinstance(statement, Many):
        await connection.executemany(native(statement.sql), statement.rows)
    else:
        await connection.execute("SET LOCAL statement_timeout = 0")
        await connection.execute(statement.text, timeout=86_400)
    return ()


@lru_cache(maxsize=1_000)
def native(sql: str) -> str:
    """A statement of the common SQL as PostgreSQL takes it."""
    for name, own in (
        ("hivewire_now()", _NOW.format("clock_timestamp")),
        ("hivewire_begun()", _NOW.format("statement_timestamp")),
        ("hivewire_tables()", _TABLES),
        ("hivewire_lock", "pg_advisory_xact_lock"),
    ):
        sql = sql.replace(name, own)
    return sql


@contextmanager
def _translated(doing: str, place: str) -> Generator[None]:
    """asyncpg's errors become ours, and nothing else happens."""
    try:
        yield
    except Answer as answer:
        raise answer.error from None
    except asyncpg.QueryCanceledError as error:
        raise TimedOut(f"{doing} in {place}: {error}; statement_timeout is too short, or a lock is held") from error
    except _AGAIN as error:
        raise _Again(f"{doing} in {place}: {error}") from error
    except (asyncpg.InvalidAuthorizationSpecificationError, asyncpg.InvalidCatalogNameError) as error:
        raise BackendError(f"{doing} in {place}: {error}; check POSTGRES_USER, _PASSWORD and _DB") from error
    except _LOST as error:
        raise ConnectionLost(f"{doing} in {place}: {str(error) or type(error).__name__}") from error
    except (asyncpg.IntegrityConstraintViolationError, asyncpg.DataError) as error:
        raise LedgerError(f"the ledger refused: {error}") from error
    except asyncpg.PostgresError as error:
        raise BackendError(f"{doing} in {place}: {error}") from error


def tls_of(settings: PostgresSettings) -> ssl.SSLContext | str | bool:
    """What asyncpg takes for `ssl`. Raises `BackendError` for files that cannot be read."""
    mode = settings.ssl_mode
    if mode == "disable":
        return False
    if mode in ("allow", "prefer"):
        return mode
    try:
        context = ssl.create_default_context(cafile=settings.ssl_root_cert)
        if settings.ssl_cert is not None:
            context.load_cert_chain(settings.ssl_cert, settings.ssl_key)
    except (OSError, ssl.SSLError) as error:
        raise BackendError(f"TLS to {settings.host}: a certificate or key cannot be read: {error}") from error
    context.check_hostname = mode == "verify-full"
    if mode == "require" and settings.ssl_root_cert is None:
        context.verify_mode = ssl.CERT_NONE
    return context


def _size() -> Script[Sequence[Row]]:
    return (
        yield Query(
            "SELECT CAST(coalesce(sum(pg_total_relation_size(relid)), 0) AS bigint) FROM pg_stat_user_tables "
            "WHERE schemaname = current_schema()"
        )
    )
