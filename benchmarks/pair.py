"""One peer with a server, one workload, two processes: the producer in the caller's, the consumer in a child.

python -m benchmarks.pair PEER WORKLOAD COUNT URL     (the child; it speaks with its parent over its pipes)
"""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path
from time import perf_counter, process_time

import msgspec

from benchmarks.peers import loop_factory, make
from benchmarks.served import Served
from benchmarks.workload import QUEUES, WARM_UP, Figures, Tally, complete, percentile, produce, rss_mb

SOON_S = 0.05
_LIMIT = 1 << 20


class Told(msgspec.Struct):
    """What the child has seen. `done_at`: when the last acknowledgement was stored, by the machine's clock."""

    done_at: float
    cpu_s: float
    p50_ms: float
    p99_ms: float
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
        *(sys.executable, "-m", "benchmarks.pair", peer.name, workload, str(count), peer.url),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        limit=_LIMIT,
        cwd=Path(__file__).parent.parent,
    )
    try:
        return await _with(peer, workload, count, Child(process))
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()
        await peer.close()


async def _with(peer: Served, workload: str, count: int, child: Child) -> Figures:
    tally = Tally()
    tally.expect(WARM_UP)
    await child.expect(b"ready")
    await produce(peer, workload, WARM_UP, tally)
    child.say("warm")
    await child.expect(b"set")
    tally.expect(count)
    if workload == "W4":
        tally.began_at = perf_counter() + SOON_S
    child.say(str(tally.began_at or 0.0))
    await child.expect(b"set")
    cpu, server_cpu, start = process_time(), peer.server_cpu_s(), tally.began_at or perf_counter()
    await produce(peer, workload, count, tally)
    produced_at = perf_counter()
    child.say("produced")
    told = msgspec.json.decode(await child.expect(), type=Told)
    seconds = max(told.done_at, produced_at) - start
    is_asked = workload == "W6"  # then it is the asker who counts
    ordered = sorted(tally.latencies)
    return Figures(
        peer=peer.name,
        workload=workload,
        count=count,
        rate=count / seconds,
        cpu_us=(process_time() - cpu + told.cpu_s) / count * 1e6,
        server_us=(peer.server_cpu_s() - server_cpu) / count * 1e6,
        p50_ms=percentile(ordered, 0.50) * 1e3 if is_asked else told.p50_ms,
        p99_ms=percentile(ordered, 0.99) * 1e3 if is_asked else told.p99_ms,
        lost=tally.lost if is_asked else told.lost,
        duplicates=tally.duplicates if is_asked else told.duplicates,
        load=os.getloadavg()[0],
        rss_mb=max(rss_mb(), told.rss_mb),
    )


async def _consume(peer: Served, workload: str, count: int, url: str) -> None:
    """The child."""
    peer.queues = QUEUES.get(workload, 1)
    await peer.connect(url)
    lines = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(lines), sys.stdin)
    tally, stop, is_asked = Tally(), asyncio.Event(), workload == "W6"
    tally.expect(WARM_UP)
    consumer = asyncio.create_task(peer.answer(stop) if is_asked else peer.consume(tally, stop))
    print("ready", flush=True)
    await lines.readline()
    if not is_asked:
        await complete(tally, consumer)
    tally.expect(count)
    print("set", flush=True)
    began_at = float(await lines.readline())
    if began_at:
        tally.began_at, tally.sample = began_at, 0
    cpu = process_time()
    print("set", flush=True)
    if is_asked:
        await lines.readline()
    else:
        await complete(tally, consumer)
    stop.set()
    await consumer
    done_at, spent, ordered = perf_counter(), process_time() - cpu, sorted(tally.latencies)
    p50_ms, p99_ms = (percentile(ordered, share) * 1e3 for share in (0.50, 0.99))
    told = Told(done_at, spent, p50_ms, p99_ms, tally.lost, tally.duplicates, rss_mb())
    print(msgspec.json.encode(told).decode(), flush=True)
    await peer.disconnect()


def main() -> None:
    name, workload, count, url = sys.argv[1:]
    peer = make(name)
    assert isinstance(peer, Served)
    with asyncio.Runner(loop_factory=loop_factory()) as runner:
        runner.run(_consume(peer, workload, int(count), url))


if __name__ == "__main__":
    main()
