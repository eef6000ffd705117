"""The one fixture of the ledgers' suite, for each ledger of this repository."""

from __future__ import annotations

import sqlite3
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

pytest.register_assert_rewrite("hivewire.testing.ledgers")

from hivewire.testing.leaks import nothing_left_behind  # noqa: E402 -- after the line above
from hivewire.testing.ledgers.fabric import LedgerFabric  # noqa: E402
from hivewire.testing.postgres import PostgresServer  # noqa: E402
from tests.needed import needed  # noqa: E402


class MemoryLedgers(LedgerFabric):
    shared = False


class SQLiteLedgers(LedgerFabric):
    """A file of its own for each test; an outage is another connection that holds the write lock."""

    def __init__(self, folder: Path, **settings: Any) -> None:
        self.path = folder / "ledger.db"
        super().__init__(f"sqlite:///{self.path}", **settings)

    @asynccontextmanager
    async def outage(self) -> AsyncIterator[None]:
        other = sqlite3.connect(self.path, isolation_level=None, timeout=10)
        try:
            other.execute("BEGIN IMMEDIATE")
            yield
            other.execute("ROLLBACK")
        finally:
            other.close()


class PostgresLedgers(LedgerFabric):
    """A schema of its own for each test; an outage is a kill -9 of the server, and its end the start again."""

    def __init__(self, server: PostgresServer, **settings: Any) -> None:
        self.server = server
        super().__init__(f"{server.url}?schema=t_{uuid4().hex}", **settings)

    @asynccontextmanager
    async def outage(self) -> AsyncIterator[None]:
        self.server.kill()
        try:
            yield
        finally:
            self.server.start()


CACHED = {"ledger": {"enable_cache": True}}
KINDS = ("memory", "sqlite", "postgres", "cached-memory", "cached-sqlite", "cached-postgres")


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgresServer]:
    """Without one on this machine the tests are skipped; where CI is set they fail."""
    server = PostgresServer()
    with needed():
        server.start()
    yield server
    server.remove()


@pytest.fixture(params=KINDS)
async def ledgers(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[LedgerFabric]:
    """One store, alone for this test; nothing of it is left afterwards."""
    cached, _, kind = request.param.rpartition("-")
    settings = CACHED if cached else {}
    made: LedgerFabric
    if kind == "postgres":
        made = PostgresLedgers(request.getfixturevalue("postgres"), **settings)
    elif kind == "sqlite":
        made = SQLiteLedgers(tmp_path, **settings)
    else:
        made = MemoryLedgers("memory://", **settings)
    async with nothing_left_behind(), made:
        yield made
