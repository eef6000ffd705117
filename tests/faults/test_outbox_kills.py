"""A program that dies at any step between its transaction and the handling: each order is one message, handled once."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from hivewire.testing.conformance.waiting import count
from hivewire.testing.postgres import PostgresServer
from tests.conformance.ledger.users import users_database
from tests.faults.outbox_member import POINTS
from tests.needed import needed

A_ROUND = 4
"""New orders for each process."""


@pytest.fixture(params=["sqlite", "postgres"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path}/users.db"
        return
    server = PostgresServer()
    try:
        with needed():
            server.start()
        yield f"{server.url}?schema=users"
    finally:
        server.remove()


async def run_member(*arguments: object) -> tuple[str, int]:
    """The last line that it printed, and how it ended."""
    command = [sys.executable, "-m", "tests.faults.outbox_member", *map(str, arguments)]
    process = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
    assert process.stdout is not None
    printed = (await process.stdout.read()).decode().split("\n")
    return printed[-2] if len(printed) > 1 else "", await process.wait()


@pytest.mark.processes
@pytest.mark.slow
@pytest.mark.timeout(1_800 if os.environ.get("HIVEWIRE_SOAK") == "1" else 120)
async def test_each_order_is_one_message_handled_once_wherever_the_process_dies(url: str, tmp_path: Path) -> None:
    database, chance = users_database(url), random.Random(11)
    await database.prepare()
    async with database.connection() as connection:
        await database.run(connection, "CREATE TABLE handled (number integer NOT NULL)")
    protocol, rounds = f"sqlite:///{tmp_path}/queues.db", count(len(POINTS), 10 * len(POINTS))
    deaths: Counter[str] = Counter()
    for number in range(rounds):
        point, times = POINTS[number % len(POINTS)], chance.randint(1, 2)
        last, code = await run_member(url, protocol, (number + 1) * A_ROUND, point, times)
        assert (last, code) in ((point, -signal.SIGKILL), ("done", 0))
        deaths[point] += code != 0
    wanted = rounds * A_ROUND
    assert await run_member(url, protocol, wanted, "never", 1) == ("done", 0)
    async with database.connection() as connection:
        handled = [row[0] for row in await database.run(connection, "SELECT number FROM handled ORDER BY number")]
    assert await database.numbers() == list(range(wanted))
    assert handled == list(range(wanted)), f"died at {deaths}"
    assert len(+deaths) >= count(8, len(POINTS)), f"too few kinds of deaths to prove anything: {deaths}"
