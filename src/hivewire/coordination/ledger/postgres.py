"""PostgreSQL, by asyncpg."""

from __future__ import annotations

import asyncio
import random
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from functools import partial
from typing import Final, TypeVar

import asyncpg

from hivewire.coordination.ledger.pool import Answer, Connection, Limits, Pool
from hivewire.coordination.ledger.postgres_words import Again, native, of_one, translated
from hivewire.coordination.ledger.store import Given, Many, Query, Row, Script, Statement, Store
from hivewire.coordination.ledger.together import NotTogether, Together
from hivewire.errors import BackendError, Closed, ConnectionLost, LedgerError
from hivewire.settings import PostgresSettings

T = TypeVar("T")
_Way = Callable[[str, Script[T]], Awaitable[T]]

_PATIENCE_S: Final = 30.0
_CONNECT_S: Final = 5.0
_LANES: Final = 4
_OF_LANES: Final = {
    "lock_timeout": "250ms",  # so long those wait who are in one transaction with somebody who waits for a lock
    "plan_cache_mode": "force_generic_plan",
    # A plan that is made while there are few tasks must be right when there are many.
    **dict.fromkeys(("enable_seqscan", "enable_hashjoin", "enable_mergejoin"), "off"),
}
_FIRST_PAUSE_S: Final = 0.05
_LONGEST_PAUSE_S: Final = 1.0


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
        self._together: Together | None = None

    async def open(self) -> None:
        if self._pool is not None:
            return
        lanes = min(_LANES, self._settings.max_conns // 2) if self._settings.prepared_stmts else 0
        idle = min(lanes, self._settings.idle_conns)
        pool = self._pool = Pool(
            self._connect, self._limits(self._settings.max_conns - lanes, self._settings.idle_conns - idle)
        )
        try:
            with translated("open the ledger", self.place):
                async with pool.connection():
                    pass
        except BaseException:
            self._pool = None
            await pool.close(0.0)
            raise
        if lanes:
            self._together = Together(
                Pool(partial(self._connect, **_OF_LANES), self._limits(lanes, idle)),
                lanes,
                partial(translated, "write to the ledger", self.place),
            )

    def _limits(self, most: int, idle: int) -> Limits:
        return Limits(
            most=most,
            idle=idle,
            lifetime_s=self._settings.conn_max_lifetime_s,
            idle_time_s=self._settings.conn_max_idle_time_s,
        )

    async def close(self) -> None:
        pool, self._pool = self._pool, None
        together, self._together = self._together, None
        await asyncio.gather(*(each.close() for each in (together, pool) if each is not None))

    async def read(self, make: Callable[[], Script[T]]) -> T:
        return await self._patiently("read the ledger", make, self._alone)

    async def write(self, make: Callable[[], Script[T]], *, single: bool = False) -> T:
        return await self._patiently("write to the ledger", make, self._with_others if single else self._transaction)

    async def storage_size_bytes(self) -> int:
        return int((await self.read(_size))[0][0])

    async def _patiently(self, doing: str, make: Callable[[], Script[T]], way: _Way[T]) -> T:
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self._patience_s
        pause_s = _FIRST_PAUSE_S
        while True:
            try:
                return await way(doing, make())
            except ConnectionLost as error:
                way = self._alone if way == self._with_others else way  # what spoils a batch spoils one at most
                if loop.time() + pause_s > deadline:
                    raise
                await asyncio.sleep(0 if isinstance(error, Again) else random.uniform(0, pause_s))
                pause_s = min(pause_s * 2, _LONGEST_PAUSE_S)

    async def _with_others(self, doing: str, script: Script[T]) -> T:
        try:
            statement = next(script)
            if isinstance(statement, Given) and self._together is not None:
                with suppress(NotTogether):
                    statement = script.send(await self._together.execute(statement))
        except StopIteration as stop:
            result: T = stop.value
            return result
        return await self._alone(doing, script, statement)

    async def _alone(self, doing: str, script: Script[T], statement: Statement | None = None) -> T:
        async with self._connected(doing) as connection:
            return await _run(connection, script, statement)

    async def _transaction(self, doing: str, script: Script[T]) -> T:
        async with self._connected(doing) as connection, connection.transaction():
            return await _run(connection, script)

    @asynccontextmanager
    async def _connected(self, doing: str) -> AsyncIterator[Connection]:
        if self._pool is None:
            raise Closed(f"{doing} {self.place}: it was closed")
        with translated(doing, self.place):
            async with self._pool.connection() as connection:
                yield connection

    async def _connect(self, **settings_of_session: str) -> Connection:
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
                **settings_of_session,
            },
        )


async def _run(connection: Connection, script: Script[T], statement: Statement | None = None) -> T:
    """The script from its beginning, or from a statement that it has asked for."""
    try:
        statement = statement or next(script)
        while True:
            statement = script.send(await _execute(connection, statement))
    except StopIteration as stop:
        result: T = stop.value
        return result
    except (LedgerError, BackendError) as error:
        raise Answer(error) from error


async def _execute(connection: Connection, statement: Statement) -> Sequence[Row]:
    rows: Sequence[Row] = ()
    if isinstance(statement, Given):
        rows = await connection.fetch(of_one(statement.sql, statement.columns), *statement.values)
    elif isinstance(statement, Query):
        rows = await connection.fetch(native(statement.sql), *statement.arguments)
    elif isinstance(statement, Many):
        await connection.executemany(native(statement.sql), statement.rows)
    else:
        await connection.execute("SET LOCAL statement_timeout = 0")
        await connection.execute(statement.text, timeout=86_400)
    return rows


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
