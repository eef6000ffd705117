"""A ledger with many tasks: lists, changes, purges, their query plans; and task cycles beside raw commits.

    python -m benchmarks.ledger [--tasks 1000000] [--stores sqlite,postgres] [--out FILE]

PostgreSQL is started with fsync on. Times are of one caller unless the line says otherwise. Without tasks
(`--tasks 0`) there are the cycles only.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import platform
import sqlite3
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Sequence
from contextlib import AsyncExitStack, contextmanager
from functools import partial
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple, TextIO

from hivewire.coordination.ledger import Guard, Task, TaskChange, TaskFilter, TaskStatus
from hivewire.coordination.ledger.opening import ledger_settings, store_of
from hivewire.coordination.ledger.store import Ddl, Query, Row, Script
from hivewire.coordination.ledger.stored import StoredLedger
from hivewire.coordination.ledger.task_scripts import listing, purge_some
from hivewire.coordination.serving import loop_factory
from hivewire.testing.postgres import PostgresServer, postgres_folder

CALLERS = 16
ROUNDS = 7
ROUND_S = 2.0
COLUMNS = (
    "id, name, created_by, assigned_to, parent_id, priority, status, input, output, change, version, created_at, "
    "updated_at, completed_at"
)
_MADE = """
    'task-' || substr(cast(1000000000 + i AS text), 2), 'task ' || i, 'user-' || (i % 100), 'agent-' || (i % 50),
    'run-' || (i / 10), 1 + i % 10,
    CASE WHEN i % 100 < 90 THEN 'completed' WHEN i % 100 < 93 THEN 'failed' WHEN i % 100 < 95 THEN 'in_progress'
    ELSE 'pending' END, '{{"n": 1, "text": "something to be done by an agent"}}', 'null', '', 1,
    {now} - {many} + i, {now} - {many} + i + 0.5, CASE WHEN i % 100 < 93 THEN {now} - {many} + i + 0.5 END
"""
FILL = {
    "postgres": "INSERT INTO tasks ({columns}) SELECT {made} FROM generate_series(1, {many}) AS i; ANALYZE;",
    "sqlite": (
        "WITH RECURSIVE numbers(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM numbers WHERE i < {many}) "
        "INSERT INTO tasks ({columns}) SELECT {made} FROM numbers; ANALYZE;"
    ),
}


def percentile(times: list[float], part: float) -> float:
    return sorted(times)[min(int(len(times) * part), len(times) - 1)] * 1000


class Report:
    """Lines on the screen and in a file."""

    def __init__(self, out: TextIO | None) -> None:
        self._out = out

    def say(self, line: str = "") -> None:
        for stream in (sys.stdout, self._out):
            if stream is not None:
                stream.write(line + "\n")
                stream.flush()

    async def timed(self, what: str, call: Callable[[], Awaitable[object]], times: int = 50) -> None:
        taken = []
        for _ in range(times):
            began = time.perf_counter()
            await call()
            taken.append(time.perf_counter() - began)
        self.say(f"  {what:<58} p50 {percentile(taken, 0.5):8.2f} ms  p99 {percentile(taken, 0.99):8.2f} ms")

    @contextmanager
    def once(self, what: str) -> Iterator[None]:
        began = time.perf_counter()
        yield
        self.say(f"  {what:<58} {time.perf_counter() - began:8.2f} s")


def ddl(text: str) -> Script[None]:
    yield Ddl(text)


def plan(script: Script[Any], dialect: str) -> Script[list[str]]:
    statement = next(script)
    assert isinstance(statement, Query)
    prefix = "EXPLAIN (COSTS OFF)" if dialect == "postgres" else "EXPLAIN QUERY PLAN"
    rows: list[Row] = list((yield Query(f"{prefix} {statement.sql}", statement.arguments)))
    return [str(row[-1]) for row in rows]


def listing_plan(wanted: TaskFilter, dialect: str) -> Script[list[str]]:
    return (yield from plan(listing(wanted), dialect))


LISTS = {
    "latest 100": TaskFilter(),
    "pending, most urgent 100": TaskFilter(statuses=(TaskStatus.PENDING,), sort_by="priority"),
    "failed, latest 100": TaskFilter(statuses=(TaskStatus.FAILED,)),
    "failed or in progress, latest 100": TaskFilter(statuses=(TaskStatus.FAILED, TaskStatus.IN_PROGRESS)),
    "of one agent, latest 100": TaskFilter(assigned_to="agent-7"),
    "of one user, pending": TaskFilter(created_by="user-97", statuses=(TaskStatus.PENDING,)),
    "of one run": TaskFilter(parent_id="run-5"),
    "updated last": TaskFilter(sort_by="updated_at"),
}


async def lists(report: Report, ledger: StoredLedger, many: int) -> None:
    middle = await ledger.list_tasks(TaskFilter(limit=1, offset=many // 2))
    place = TaskFilter(limit=1).following(middle)
    assert place is not None
    deep = {
        "100, by an offset of 50 %": TaskFilter(offset=many // 2),
        "100, by a place at 50 %": TaskFilter(after=place.after),
    }
    for what, wanted in (LISTS | deep).items():
        await report.timed(what, partial(ledger.list_tasks, wanted), 5 if "offset" in what else 30)
        for line in await ledger.store.read(partial(listing_plan, wanted, ledger.store.dialect)):
            report.say(f"      {line}")
    with report.once("stats"):
        await ledger.stats()
    with report.once("count of all pending"):
        await ledger.count_tasks(TaskFilter(statuses=(TaskStatus.PENDING,)))


async def changes(report: Report, ledger: StoredLedger, many: int) -> None:
    numbers = iter(range(95, many, 100))

    async def update() -> None:
        await ledger.update_task(f"task-{next(numbers):09}", TaskChange(priority=3))

    async def complete() -> None:
        await ledger.complete_task(f"task-{next(numbers):09}", {"ok": True})

    await report.timed("get", partial(ledger.get_task, f"task-{many // 3:09}"), 200)
    await report.timed("create", lambda: ledger.create_task(Task(name="new")), 200)
    await report.timed("update", update, 200)
    await report.timed("complete", complete, 200)
    kept_s = many * 0.9
    report.say("  purge of one transaction (1,000 tasks):")
    for line in await ledger.store.read(
        lambda: plan(purge_some(kept_s, (TaskStatus.COMPLETED,)), ledger.store.dialect)
    ):
        report.say(f"      {line}")
    with report.once("purge of the oldest tenth of the finished ones"):
        purged = await ledger.purge_completed(kept_s)
    report.say(f"      {purged:,} tasks")


Caller = Callable[[float, list[float]], Awaitable[int]]
"""Works until a time, notes how long each write took, and returns how often it was done."""


def cycling(ledger: StoredLedger) -> Caller:
    """Create, assign, start, complete: four writes, eight rows."""

    async def work(until: float, taken: list[float]) -> int:
        done = 0
        while time.perf_counter() < until:
            steps = [time.perf_counter()]
            task = await ledger.create_task(Task(name="cycle", input={"n": 1}))
            steps.append(time.perf_counter())
            change = TaskChange(status=TaskStatus.ASSIGNED, assigned_to="coder")
            task = await ledger.update_task(task.id, change, Guard(version=task.version))
            steps.append(time.perf_counter())
            task = await ledger.update_task(task.id, TaskChange(status=TaskStatus.IN_PROGRESS))
            steps.append(time.perf_counter())
            await ledger.complete_task(task.id, {"ok": True}, Guard(version=task.version))
            steps.append(time.perf_counter())
            taken.extend(after - before for before, after in pairwise(steps))
            done += 1
        return done

    return work


def committing(commit: Callable[[], Awaitable[object]]) -> Caller:
    async def work(until: float, taken: list[float]) -> int:
        done = 0
        while time.perf_counter() < until:
            began = time.perf_counter()
            await commit()
            taken.append(time.perf_counter() - began)
            done += 1
        return done

    return work


class Side(NamedTuple):
    rate: float
    p50_ms: float
    p99_ms: float
    whole_p99_ms: float
    """Of all writes of a cycle together."""


async def side(callers: Sequence[Caller]) -> Side:
    taken: list[float] = []
    began = time.perf_counter()
    done = sum(await asyncio.gather(*(caller(began + ROUND_S, taken) for caller in callers)))
    rate, writes = done / (time.perf_counter() - began), len(taken) // done
    whole = [sum(taken[start : start + writes]) for start in range(0, len(taken), writes)]
    return Side(rate, percentile(taken, 0.5), percentile(taken, 0.99), percentile(whole, 0.99))


async def cycles(report: Report, ledger: StoredLedger, raw: Sequence[Caller]) -> None:
    """Task cycles beside commits of one row, by as many callers, in turns."""
    rounds = [(await side(raw), await side([cycling(ledger)] * CALLERS)) for _ in range(ROUNDS)]
    for what, sides in zip(
        ("raw commits of one row", "task cycles of four writes"), zip(*rounds, strict=True), strict=True
    ):
        rate, p50, p99, whole = (median(values) for values in zip(*sides, strict=True))
        report.say(
            f"  {what:<28} {rate:9,.0f}/s  each write p50 {p50:7.2f} ms  p99 {p99:7.2f} ms  whole p99 {whole:7.2f} ms"
        )
    ratios = [cycle.rate / raw.rate for raw, cycle in rounds]
    slower = [cycle.p99_ms / raw.p99_ms for raw, cycle in rounds]
    report.say(
        f"  cycles are {median(ratios):.1%} of the raw commits (of {ROUNDS} rounds: {min(ratios):.1%} to "
        f"{max(ratios):.1%}), p99 of a write {median(slower):.1f} x ({min(slower):.1f} to {max(slower):.1f})"
    )


RAW = "INSERT INTO raw_commits VALUES (1.0)"


async def raw_callers(ledger: StoredLedger, url: str, stack: AsyncExitStack) -> list[Caller]:
    """PostgreSQL: a connection each. SQLite: through the store, which commits together what waits."""
    await ledger.store.write(partial(ddl, "CREATE TABLE raw_commits (at double precision);"))
    if ledger.store.dialect == "sqlite":
        return [committing(partial(ledger.store.write, raw, single=True))] * CALLERS
    import asyncpg

    connections = [await asyncpg.connect(url) for _ in range(CALLERS)]
    for connection in connections:
        stack.push_async_callback(connection.close)
    return [committing(partial(connection.fetch, RAW)) for connection in connections]


def raw() -> Script[None]:
    yield Query(RAW)


async def measure(report: Report, kind: str, url: str, many: int) -> None:
    ledger = StoredLedger(store_of(ledger_settings(url)), migrate=True)
    async with ledger:
        report.say(f"\n{kind}, {CALLERS} callers, an empty ledger")
        async with AsyncExitStack() as stack:
            await cycles(report, ledger, await raw_callers(ledger, url, stack))
        if not many:
            return
        report.say(f"\n{kind}, {many:,} tasks")
        now = time.time()
        made = _MADE.format(now=now, many=many)
        with report.once("filled, with a row of history each"):
            await ledger.store.write(
                partial(ddl, FILL[ledger.store.dialect].format(columns=COLUMNS, made=made, many=many))
            )
        await lists(report, ledger, many)
        await changes(report, ledger, many)
        stats = await ledger.stats()
        report.say(f"  on the disk {stats.storage_size_bytes / 1e6:,.0f} MB")


def run(work: Coroutine[Any, Any, None]) -> None:
    with asyncio.Runner(loop_factory=loop_factory()) as runner:
        runner.run(work)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", type=int, default=1_000_000)
    parser.add_argument("--stores", default="sqlite,postgres")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    out = args.out.open("w") if args.out else None
    report = Report(out)
    report.say(f"python -m benchmarks.ledger --tasks {args.tasks}")
    report.say(
        f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}; Python {platform.python_version()}, "
        f"SQLite {sqlite3.sqlite_version}, {postgres_folder()}"
    )
    for kind in args.stores.split(","):
        if kind == "sqlite":
            with tempfile.TemporaryDirectory() as folder:
                run(measure(report, kind, f"sqlite:///{folder}/ledger.db", args.tasks))
        else:
            with PostgresServer(durable=True, options=("shared_buffers=512MB", "max_wal_size=4GB")) as server:
                run(measure(report, kind, server.url, args.tasks))


if __name__ == "__main__":
    main()
