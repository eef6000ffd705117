"""Faults of a real store: the SQLite file and the processes that share it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Generator, Iterator
from pathlib import Path

import pytest

pytest.register_assert_rewrite("hivewire.testing.conformance")

from hivewire.testing.conformance.fabric import Fabric  # noqa: E402 -- after the line above
from hivewire.testing.leaks import Census, no_unhandled_errors  # noqa: E402
from hivewire.testing.postgres import PostgresServer  # noqa: E402
from hivewire.testing.servers import RedisServer  # noqa: E402
from tests.conformance.backends import SQLiteFabric  # noqa: E402
from tests.needed import needed  # noqa: E402


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """A failure shows what the workers wrote."""
    report = yield
    folder = getattr(item, "funcargs", {}).get("tmp_path")
    if report.failed and folder is not None:
        for said in sorted(folder.glob("*.stderr")):
            if said.stat().st_size:
                report.sections.append((said.stem, said.read_text(errors="replace")[-4000:]))
    return report


@pytest.fixture
async def fabric(tmp_path: Path) -> AsyncIterator[Fabric]:
    before = Census.take()
    with no_unhandled_errors():
        async with SQLiteFabric(tmp_path) as made:
            yield made
    await before.check()


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
