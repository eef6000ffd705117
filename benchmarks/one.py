"""One peer, one workload, one process: prints its figures as a line of JSON.

python -m benchmarks.one PEER WORKLOAD COUNT
"""

from __future__ import annotations

import asyncio
import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from time import perf_counter, process_time

import msgspec

from benchmarks.plan import REDIS_PEERS
from benchmarks.workload import QUEUES, Figures, Peer, Tally, percentile, produce, rss_mb

WARM_UP = 500
PATIENCE_S = 120.0
"""A run in which nothing is complete after this long is reported with its losses."""


def _peers() -> dict[str, Callable[[], Peer]]:
    from benchmarks.queue_libraries import LiteQueuePeer, PersistQueuePeer
    from benchmarks.raw_memory import AsyncioQueue, MemDeque
    from benchmarks.raw_sqlite import SqliteWal, SqliteWalNormal

    raw: list[type[Peer]] = [MemDeque, AsyncioQueue, SqliteWal, SqliteWalNormal, LiteQueuePeer, PersistQueuePeer]
    return {kind.name: kind for kind in raw}


def _on_redis() -> dict[str, Callable[[], Peer]]:
    from benchmarks.frameworks import DramatiqRedis, FastStreamRedis, TaskiqRedis
    from benchmarks.raw_redis import RedisAutopipe, RedisPyAsyncio

    raw: list[type[Peer]] = [RedisAutopipe, RedisPyAsyncio, FastStreamRedis, TaskiqRedis, DramatiqRedis]
    return {kind.name: kind for kind in raw}


def _ours() -> dict[str, Callable[[], Peer]]:
    from benchmarks.ours import OnMemory, OnRedis, OnSqlite, OnSqliteNormal

    return {kind.name: kind for kind in (OnMemory, OnRedis, OnSqlite, OnSqliteNormal)}


def _make(name: str) -> Peer:
    if name.startswith("hivewire"):
        return _ours()[name]()
    return (_on_redis() if name in REDIS_PEERS else _peers())[name]()


async def _complete(tally: Tally, consumer: asyncio.Task[None]) -> bool:
    """Wait until everything arrived; raises what ended the consumer too early."""
    done = asyncio.create_task(tally.done.wait())
    await asyncio.wait({done, consumer}, timeout=PATIENCE_S, return_when=asyncio.FIRST_COMPLETED)
    if consumer.done():
        consumer.result()
    return not done.cancel()


async def measure(peer: Peer, workload: str, count: int, folder: Path) -> Figures:
    peer.queues = QUEUES.get(workload, 1)
    await peer.open(folder)
    tally, stop = Tally(), asyncio.Event()
    consumer = asyncio.create_task(peer.answer(stop) if workload == "W6" else peer.consume(tally, stop))
    tally.expect(WARM_UP)
    await produce(peer, workload, WARM_UP, tally)
    await _complete(tally, consumer)

    tally.expect(count)
    cpu, server_cpu, start = process_time(), peer.server_cpu_s(), perf_counter()
    await produce(peer, workload, count, tally)
    if not await _complete(tally, consumer):
        print(f"{peer.name} {workload}: {tally.lost} of {count} are missing after {PATIENCE_S:g} s", file=sys.stderr)
    stop.set()
    await consumer
    seconds, spent = perf_counter() - start, process_time() - cpu
    spent_there = peer.server_cpu_s() - server_cpu
    await peer.close()
    ordered = sorted(tally.latencies)
    return Figures(
        peer=peer.name,
        workload=workload,
        count=count,
        rate=count / seconds,
        cpu_us=spent / count * 1e6,
        server_us=spent_there / count * 1e6,
        p50_ms=percentile(ordered, 0.50) * 1e3,
        p99_ms=percentile(ordered, 0.99) * 1e3,
        lost=tally.lost,
        duplicates=tally.duplicates,
        load=os.getloadavg()[0],
        rss_mb=rss_mb(),
    )


def run(name: str, workload: str, count: int) -> Figures:
    peer = _make(name)
    with tempfile.TemporaryDirectory(prefix="bench-") as folder, asyncio.Runner(loop_factory=loop_factory()) as runner:
        return runner.run(measure(peer, workload, count, Path(folder)))


def loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """uvloop for every peer where it is installed."""
    try:
        import uvloop
    except ImportError:
        return None
    return uvloop.new_event_loop


if __name__ == "__main__":
    print(msgspec.json.encode(run(sys.argv[1], sys.argv[2], int(sys.argv[3]))).decode())
