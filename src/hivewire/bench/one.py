"""One peer, one workload, one process: prints its figures as a line of JSON.

python -m hivewire.bench.one MODULE:CLASS WORKLOAD COUNT [URL | FOLDER]
"""

from __future__ import annotations

import asyncio
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from time import perf_counter, process_time

import msgspec

from hivewire.bench import pair
from hivewire.bench.peers import make
from hivewire.bench.served import Served
from hivewire.bench.workload import (
    PATIENCE_S,
    QUEUES,
    SOON_S,
    WARM_UP,
    Figures,
    Peer,
    Tally,
    complete,
    produce,
    rss_mb,
)
from hivewire.coordination.serving import loop_factory
from hivewire.ids import new_id


async def measure(peer: Peer, workload: str, count: int, folder: Path) -> Figures:
    peer.queues = QUEUES.get(workload, 1)
    await peer.open(folder)
    tally, stop, is_asked = Tally(), asyncio.Event(), workload == "W6"
    consumer = asyncio.create_task(peer.answer(stop) if is_asked else peer.consume(tally, stop))
    warm_up = min(WARM_UP, count)
    tally.expect(warm_up)
    await produce(peer, "W2" if workload == "W4" else workload, warm_up, tally)
    await complete(tally, consumer)

    tally.expect(count)
    if workload == "W4":
        tally.by_the_clock(perf_counter() + SOON_S)
    cpu, start = process_time(), perf_counter()
    await produce(peer, workload, count, tally)
    if not await complete(tally, consumer):
        print(f"{peer.name} {workload}: {tally.lost} of {count} are missing after {PATIENCE_S:g} s", file=sys.stderr)
    stop.set()
    await consumer
    seconds, spent = perf_counter() - start, process_time() - cpu
    await peer.close()
    p50_ms, p95_ms, p99_ms, p999_ms = tally.percentiles_ms()
    return Figures(
        peer=peer.name,
        workload=workload,
        count=count,
        rate=count / seconds,
        cpu_us=spent / count * 1e6,
        p50_ms=p50_ms,
        p95_ms=p95_ms,
        p99_ms=p99_ms,
        p999_ms=p999_ms,
        lost=tally.lost,
        duplicates=tally.duplicates,
        load=os.getloadavg()[0],
        rss_mb=rss_mb(),
    )


def run(address: str, workload: str, count: int, where: str = "") -> Figures:
    """With a server the consumer is a process of its own. `where`: a server that runs already, or the folder for
    files (else one for temporary files)."""
    peer = make(address)
    is_served = isinstance(peer, Served)
    folder_in = None if is_served else where or None
    with (
        tempfile.TemporaryDirectory(prefix="hivewire-bench-", dir=folder_in) as folder,
        asyncio.Runner(loop_factory=loop_factory()) as runner,
    ):
        if not isinstance(peer, Served):
            return runner.run(measure(peer, workload, count, Path(folder)))
        if where:
            peer.url, peer.sink = where, f"bench-{new_id()}"
        return runner.run(pair.measure(peer, workload, count, Path(folder)))


def main(arguments: Sequence[str]) -> None:
    address, workload, count, *where = arguments
    print(msgspec.json.encode(run(address, workload, int(count), *where)).decode())


if __name__ == "__main__":
    main(sys.argv[1:])
