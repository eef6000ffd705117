"""A user's own database, with a table of orders in it, in both dialects."""

from __future__ import annotations

import re
import sqlite3
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import asyncpg

import hivewire as hw


class UsersDatabase(ABC):
    """`url` is what a relay gets; a connection is the user's."""

    def __init__(self, url: str) -> None:
        self.url = url

    @abstractmethod
    async def connect(self) -> Any: ...

    @abstractmethod
    async def disconnect(self, connection: Any) -> None: ...

    @abstractmethod
    def transaction(self, connection: Any) -> Any:
        """Committed at the end, undone by an exception."""

    @abstractmethod
    async def run(self, connection: Any, sql: str, *arguments: Any) -> list[Any]: ...

    @asynccontextmanager
    async def connection(self) -> AsyncIterator[Any]:
        connection = await self.connect()
        try:
            yield connection
        finally:
            await self.disconnect(connection)

    async def prepare(self) -> None:
        async with self.connection() as connection:
            await hw.Outbox().create_tables(connection)
            await self.run(connection, "CREATE TABLE IF NOT EXISTS orders (number integer NOT NULL)")

    async def numbers(self) -> list[int]:
        async with self.connection() as connection:
            return [row[0] for row in await self.run(connection, "SELECT number FROM orders ORDER BY number")]


class UsersSQLite(UsersDatabase):
    async def connect(self) -> sqlite3.Connection:
        path = self.url.removeprefix("sqlite:///")
        connection = sqlite3.connect(path, isolation_level=None, timeout=30)
        connection.execute("PRAGMA journal_mode = WAL")
        return connection

    async def disconnect(self, connection: sqlite3.Connection) -> None:
        connection.close()

    @asynccontextmanager
    async def transaction(self, connection: sqlite3.Connection) -> AsyncIterator[None]:
        connection.execute("BEGIN IMMEDIATE")
        try:
            yield
        except BaseException:
            connection.execute("ROLLBACK")
            raise
        connection.execute("COMMIT")

    async def run(self, connection: sqlite3.Connection, sql: str, *arguments: Any) -> list[Any]:
        return connection.execute(re.sub(r"\$\d+", "?", sql), arguments).fetchall()


class UsersPostgres(UsersDatabase):
    async def connect(self) -> Any:
        plain, _, schema = self.url.partition("?schema=")
        connection = await asyncpg.connect(plain, server_settings={"search_path": schema})
        await connection.execute(f"CREATE SCHEMA IF NOT EXISTS {schema}")
        return connection

    async def disconnect(self, connection: Any) -> None:
        await connection.close()

    def transaction(self, connection: Any) -> Any:
        return connection.transaction()

    async def run(self, connection: Any, sql: str, *arguments: Any) -> list[Any]:
        found: list[Any] = await connection.fetch(sql, *arguments)
        return found


def users_database(url: str) -> UsersDatabase:
    return UsersSQLite(url) if url.startswith("sqlite") else UsersPostgres(url)
