"""Faults of a real store: the SQLite file and the processes that share it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

pytest.register_assert_rewrite("hivewire.testing.conformance")

from hivewire.testing.conformance.fabric import Fabric  # noqa: E402 -- after the line above
from hivewire.testing.leaks import nothing_left_behind  # noqa: E402
from hivewire.testing.postgres import PostgresServer  # noqa: E402
from hivewire.testing.servers import RedisServer  # noqa: E402
from tests.conformance.backends import RedisFabric, SQLiteFabric  # noqa: E402
from tests.needed import needed  # noqa: E402


@pytest.fixture
async def fabric(tmp_path: Path) -> AsyncIterator[Fabric]:
    async with nothing_left_behind(), SQLiteFabric(tmp_path) as made:
        yield made


@pytest.fixture
async def redis(tmp_path: Path) -> AsyncIterator[RedisFabric]:
    async with nothing_left_behind(), RedisFabric(tmp_path) as made:
        yield made


@pytest.fixture
def servers(tmp_path: Path) -> Iterator[tuple[str, str]]:
    """The URLs of a Redis and of a PostgreSQL. Where CI is set, a test fails that has none."""
    redis, postgres = RedisServer(tmp_path / "redis"), PostgresServer(options=("max_connections=200",))
    try:
        with needed():
            redis.start()
            postgres.start()
        yield redis.url, postgres.url
    finally:
        redis.kill()
        postgres.remove()
