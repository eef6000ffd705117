"""One peer with a server, one workload, two processes: the producer in the caller's, the consumer in a child.

python -m hivewire.bench.pair MODULE:CLASS WORKLOAD COUNT URL SINK

is the child; it speaks with its parent over its pipes.
"""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path
from time import perf_counter, process_time

import msgspec

from hivewire.bench.peers import address_of, make
from hivewire.bench.served import Served
from hivewire.bench.workload import QUEUES, SOON_S, WARM_UP, Figures, Tally, complete, produce, rss_mb
from hivewire.coordination.serving import loop_factory

_LIMIT = 1 << 20


class Told(msgspec.Struct):
    """What the child has seen. `done_at`: when the last acknowledgement was stored, by the machine's clock."""

    done_at: float
    cpu_s: float
    latency_ms: list[float]
    lost: int
    duplicates: int
    rss_mb: float


class Child:
    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    async def expect(self, word: bytes | None = None) -> bytes:
        assert self._process.stdout is not None
        line = (await self._process.stdout.readline()).strip()
        if not line or (word is not None and line != word):
            raise RuntimeError(f"the consumer's process said {line!r} instead of {word!r}")
        return line

    def say(self, line: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(f"{line}\n".encode())


async def measure(peer: Served, workload: str, count: int, folder: Path) -> Figures:
    peer.queues = QUEUES.get(workload, 1)
    await peer.open(folder)
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "hivewire.bench.pair", address_of(peer), workload, str(count), peer.url, peer.sink),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        limit=_LIMIT,
    )
    try:
        return await _with(peer, workload, count, Child(process))
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()
        await peer.close()


async def _with(peer: Served, workload: str, count: int, child: Child) -> Figures:
    tally, warm_up = Tally(), min(WARM_UP, count)
    tally.expect(warm_up)
    await child.expect(b"ready")
    await produce(peer, "W2" if workload == "W4" else workload, warm_up, tally)
    child.say("warm")
    await child.expect(b"set")
    tally.expect(count)
    if workload == "W4":
        tally.by_the_clock(perf_counter() + SOON_S)
    child.say(str(tally.began_at or 0.0))
    await child.expect(b"set")
    cpu, server_cpu, start = process_time(), peer.server_cpu_s(), tally.began_at or perf_counter()
    await produce(peer, workload, count, tally)
    produced_at = perf_counter()
    child.say("produced")
    told = msgspec.json.decode(await child.expect(), type=Told)
    seconds = max(told.done_at, produced_at) - start
    is_asked = workload == "W6"  # then it is the asker who counts
    p50_ms, p95_ms, p99_ms, p999_ms = tally.percentiles_ms() if is_asked else told.latency_ms
    return Figures(
        peer=peer.name,
        workload=workload,
        count=count,
        rate=count / seconds,
        cpu_us=(process_time() - cpu + told.cpu_s) / count * 1e6,
        server_us=(peer.server_cpu_s() - server_cpu) / count * 1e6,
        p50_ms=p50_ms,
        p95_ms=p95_ms,
        p99_ms=p99_ms,
        p999_ms=p999_ms,
        lost=tally.lost if is_asked else told.lost,
        duplicates=tally.duplicates if is_asked else told.duplicates,
        load=os.getloadavg()[0],
        rss_mb=max(rss_mb(), told.rss_mb),
    )


async def _consume(peer: Served, workload: str, count: int, url: str, sink: str) -> None:
    """The child."""
    peer.queues, peer.sink = QUEUES.get(workload, 1), sink
    await peer.connect(url)
    lines = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(lines), sys.stdin)
    tally, stop, is_asked = Tally(), asyncio.Event(), workload == "W6"
    tally.expect(min(WARM_UP, count))
    consumer = asyncio.create_task(peer.answer(stop) if is_asked else peer.consume(tally, stop))
    print("ready", flush=True)
    await lines.readline()
    if not is_asked:
        await complete(tally, consumer)
    tally.expect(count)
    print("set", flush=True)
    began_at = float(await lines.readline())
    if began_at:
        tally.by_the_clock(began_at)
    cpu = process_time()
    print("set", flush=True)
    if is_asked:
        await lines.readline()
    else:
        await complete(tally, consumer)
    stop.set()
    await consumer
    done_at, spent = perf_counter(), process_time() - cpu
    told = Told(done_at, spent, tally.percentiles_ms(), tally.lost, tally.duplicates, rss_mb())
    print(msgspec.json.encode(told).decode(), flush=True)
    await peer.disconnect()


def main() -> None:
    address, workload, count, url, sink = sys.argv[1:]
    peer = make(address)
    assert isinstance(peer, Served)
    with asyncio.Runner(loop_factory=loop_factory()) as runner:
        runner.run(_consume(peer, workload, int(count), url, sink))


if __name__ == "__main__":
    main()
