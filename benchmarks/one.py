"""One peer, one workload, one process: prints its figures as a line of JSON.

python -m benchmarks.one PEER WORKLOAD COUNT
"""

from __future__ import annotations

import asyncio
import os
import sys
import tempfile
from pathlib import Path
from time import perf_counter, process_time

import msgspec

from benchmarks import pair
from benchmarks.peers import loop_factory, make
from benchmarks.served import Served
from benchmarks.workload import PATIENCE_S, WARM_UP, Figures, Peer, Tally, complete, percentile, produce, rss_mb


async def measure(peer: Peer, workload: str, count: int, folder: Path) -> Figures:
    await peer.open(folder)
    tally, stop = Tally(), asyncio.Event()
    consumer = asyncio.create_task(peer.consume(tally, stop))
    tally.expect(WARM_UP)
    await produce(peer, workload, WARM_UP, tally)
    await complete(tally, consumer)

    tally.expect(count)
    cpu, start = process_time(), perf_counter()
    await produce(peer, workload, count, tally)
    if not await complete(tally, consumer):
        print(f"{peer.name} {workload}: {tally.lost} of {count} are missing after {PATIENCE_S:g} s", file=sys.stderr)
    stop.set()
    await consumer
    seconds, spent = perf_counter() - start, process_time() - cpu
    await peer.close()
    ordered = sorted(tally.latencies)
    return Figures(
        peer=peer.name,
        workload=workload,
        count=count,
        rate=count / seconds,
        cpu_us=spent / count * 1e6,
        p50_ms=percentile(ordered, 0.50) * 1e3,
        p99_ms=percentile(ordered, 0.99) * 1e3,
        lost=tally.lost,
        duplicates=tally.duplicates,
        load=os.getloadavg()[0],
        rss_mb=rss_mb(),
    )


def run(name: str, workload: str, count: int) -> Figures:
    """With a server the consumer is a process of its own."""
    peer = make(name)
    with tempfile.TemporaryDirectory(prefix="bench-") as folder, asyncio.Runner(loop_factory=loop_factory()) as runner:
        if isinstance(peer, Served):
            return runner.run(pair.measure(peer, workload, count, Path(folder)))
        return runner.run(measure(peer, workload, count, Path(folder)))


if __name__ == "__main__":
    print(msgspec.json.encode(run(sys.argv[1], sys.argv[2], int(sys.argv[3]))).decode())
