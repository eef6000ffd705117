"""Fixtures for tests of programs that use Hivewire. In `conftest.py`: `pytest_plugins = ["hivewire.testing.plugin"]`.

The async ones need pytest-asyncio. `hive_seed` is new in each run and printed by what fails; `--hive-seed N` is
that one again.
"""

from __future__ import annotations

import os
import random
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from hivewire.factory import connect
from hivewire.protocol import Protocol
from hivewire.testing.kit import QUICK, faulty, memory
from hivewire.testing.servers import RedisServer, ServerMissing

try:
    from pytest_asyncio import fixture as async_fixture
except ModuleNotFoundError:  # then an async fixture fails by itself, and says why
    async_fixture = pytest.fixture  # type: ignore[assignment]  # the same use


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--hive-seed", type=int, default=None, help="the seed of the fixture hive_seed")


@pytest.fixture
def hive_seed(request: pytest.FixtureRequest) -> int:
    """A number that decides what goes wrong in this test."""
    given: int | None = request.config.getoption("--hive-seed")
    seed = random.randrange(1 << 31) if given is None else given
    print(f"hive_seed {seed} (repeat it with --hive-seed {seed})")
    return seed


@async_fixture
async def hive() -> AsyncIterator[Protocol]:
    """A protocol on a memory store of this test."""
    async with memory() as protocol:
        yield protocol


@async_fixture
async def faulty_hive(hive_seed: int) -> AsyncIterator[Protocol]:
    """A protocol whose store fails, loses answers and is slow, by `hive_seed`. It is well again when the test ends."""
    protocol, trouble = faulty(hive_seed)
    async with protocol:
        yield protocol
        trouble.heal()


@async_fixture
async def sqlite_hive(tmp_path: Path) -> AsyncIterator[Protocol]:
    """A protocol on a real SQLite file of this test."""
    settings: dict[str, Any] = {**QUICK}
    async with connect(f"sqlite:///{tmp_path}/hive.db", **settings) as protocol:
        yield protocol


@pytest.fixture
def redis_server(tmp_path: Path) -> Iterator[RedisServer]:
    """A Redis of this test. Without one on this machine the test is skipped; where CI is set it fails."""
    server = RedisServer(tmp_path / "redis")
    try:
        server.start()
    except ServerMissing as missing:
        if os.environ.get("CI"):
            pytest.fail(f"{missing}; with CI set its tests must run")
        pytest.skip(str(missing))
    yield server
    server.kill()


@async_fixture
async def redis_hive(redis_server: RedisServer) -> AsyncIterator[Protocol]:
    """A protocol on the Redis of this test."""
    settings: dict[str, Any] = {**QUICK}
    async with connect(redis_server.url, **settings) as protocol:
        yield protocol
