"""What holds at any rate: nothing is lost at large counts, cost does not grow with the backlog, takeover is in time.

python -m benchmarks.promises NAME BACKEND [SCALE]
"""

from __future__ import annotations

import asyncio
import signal
import sys
import tempfile
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import ExitStack
from functools import cache
from itertools import count
from pathlib import Path
from statistics import median
from time import monotonic, perf_counter, process_time
from typing import Final

import msgspec

import hivewire as hw
from hivewire.bench.ours import message
from hivewire.bench.report import Verdict
from hivewire.bench.served import REDIS_OPTIONS
from hivewire.bench.workload import BATCH, Tally
from hivewire.coordination.serving import loop_factory
from hivewire.testing.kafka_servers import Broker
from hivewire.testing.servers import RedisServer

KEYS: Final = 10
WAIT_S: Final = 120.0


servers: Final = ExitStack()
"""Those that were started for this proof."""
_prefixes: Final = count()
_TOPICS: Final = 100
"""On Kafka an agent is a topic: a thousand are a thousand instances of so many."""


def target_of(backend: str, folder: Path) -> str:
    if backend == "redis":
        return _redis(folder).url
    if backend == "kafka":
        name = f"p{next(_prefixes)}"
        return f"{_broker().url}?topic_prefix={name}&group_id={name}"
    return "memory://proof" if backend == "memory" else f"sqlite:///{folder / 'proof.db'}"


@cache
def _broker() -> Broker:
    """One for all: it takes seconds to start."""
    folder = servers.enter_context(tempfile.TemporaryDirectory(prefix="bench-"))
    return servers.enter_context(Broker(Path(folder)))


def _redis(folder: Path) -> RedisServer:
    return servers.enter_context(RedisServer(folder / "redis", *REDIS_OPTIONS))


def tallying(agent: str, tally: Tally) -> hw.Worker:
    worker = hw.Worker(agent)

    @worker.on("task")
    async def handle(message: hw.Message, ctx: hw.Context) -> None:
        tally.note(message.content)

    return worker


async def _send(protocol: hw.Protocol, numbers: range, to: str = "sink") -> None:
    for first in range(0, len(numbers), BATCH):
        chunk = numbers[first : first + BATCH]
        await protocol.send_many([message(number, f"p{number % KEYS}", to) for number in chunk])


async def _serve_until_done(protocol: hw.Protocol, workers: Sequence[hw.Worker], tally: Tally) -> None:
    """Serve until the tally is complete, and wait for the acknowledgements."""
    stop = asyncio.Event()
    async with asyncio.TaskGroup() as group:
        for worker in workers:
            group.create_task(worker.serve(protocol, stop=stop.wait()))
        try:
            await asyncio.wait_for(tally.done.wait(), WAIT_S)
        except TimeoutError:
            print(f"{tally.lost} messages are missing after {WAIT_S:g} s", file=sys.stderr)
        stop.set()


async def before_the_first_reader(backend: str, scale: float, folder: Path) -> Verdict:
    messages = int(30_000 * scale)
    tally = Tally()
    tally.expect(messages)
    async with hw.connect(target_of(backend, folder)) as protocol:
        await _send(protocol, range(messages))
        await _serve_until_done(protocol, [tallying("sink", tally)], tally)
        left = await protocol.depth("sink")
    rest = left.ready + left.in_flight
    told = f"{tally.lost} lost, {tally.duplicates} doubled of {messages:,} sent before anyone reads"
    text = f"{told}; {rest} left in the queue"
    return Verdict(
        f"P8 {backend}: before the first reader",
        text,
        not (tally.lost or tally.duplicates or rest),
    )


async def thousand_queues(backend: str, scale: float, folder: Path) -> Verdict:
    queues, each = max(int(1_000 * scale), 10), 10
    agents = min(queues, _TOPICS) if backend == "kafka" else queues
    tally = Tally()
    tally.expect(queues * each)
    async with hw.connect(target_of(backend, folder)) as protocol:
        start = perf_counter()
        for queue in range(queues):
            await _send(protocol, range(queue * each, (queue + 1) * each), to=_address(queue, agents))
        await _serve_until_done(protocol, [tallying(f"sink-{agent}", tally) for agent in range(agents)], tally)
        seconds = perf_counter() - start
    what = "queues" if agents == queues else f"instances of {agents} agents"
    text = f"{tally.lost} lost, {tally.duplicates} doubled of {queues * each:,} in {queues:,} {what}, {seconds:.1f} s"
    return Verdict(f"P8 {backend}: a thousand queues", text, not (tally.lost or tally.duplicates))


def _address(queue: int, agents: int) -> str:
    return f"sink-{queue}" if queue < agents else f"sink-{queue % agents}/{queue}"


async def _cpu_with_backlog(target: str, backlog: int, wanted: int) -> float:
    """CPU per message, sent and handled, while `backlog` others wait."""
    tally = Tally()
    tally.expect(backlog + wanted)
    handled, stop = 0, asyncio.Event()
    worker = hw.Worker("sink")

    @worker.on("task")
    async def handle(message: hw.Message, ctx: hw.Context) -> None:
        nonlocal handled
        tally.note(message.content)
        handled += 1
        if handled == wanted:
            stop.set()

    async with hw.connect(target) as protocol:
        await _send(protocol, range(backlog))
        cpu = process_time()
        async with asyncio.TaskGroup() as group:
            group.create_task(worker.serve(protocol, stop=stop.wait()))
            await _send(protocol, range(backlog, backlog + wanted))
        spent = process_time() - cpu
    return spent / max(handled, 1) * 1e6


async def backlog_cost(backend: str, scale: float, folder: Path) -> Verdict:
    small, large, handled = int(900 * scale), int(90_000 * scale), max(int(10_000 * scale), 500)
    costs: dict[int, list[float]] = {small: [], large: []}
    for number in range(5):
        for backlog in (small, large) if number % 2 == 0 else (large, small):
            path = folder / f"{number}-{backlog}"
            path.mkdir()
            costs[backlog].append(await _cpu_with_backlog(target_of(backend, path), backlog, handled))
    low, high = median(costs[small]), median(costs[large])
    text = f"{high / low:.2f} x the CPU per message: {high:.1f} us with {large:,} waiting, {low:.1f} us with {small:,}"
    return Verdict(f"{backend}: cost at 100 x the backlog <= 1.3 x", text, high <= 1.3 * low)


VICTIM: Final = """
import asyncio, sys
import hivewire as hw
async def main():
    worker = hw.Worker("sink")
    @worker.on("task")
    async def handle(message, ctx):
        print("started", flush=True)
        await asyncio.sleep(3600)
    async with hw.connect(sys.argv[1], lease_s=float(sys.argv[2])) as protocol:
        await worker.serve(protocol)
asyncio.run(main())
"""


async def _takeover_s(target: str, lease_s: float) -> float:
    """From the kill -9 of the process that handles a message until another process starts to handle it."""
    victim = await asyncio.create_subprocess_exec(
        sys.executable, "-c", VICTIM, target, str(lease_s), stdout=asyncio.subprocess.PIPE
    )
    try:
        async with hw.connect(target, lease_s=lease_s) as protocol:
            await protocol.send(message(0, "p0"))
            if victim.stdout is None or await victim.stdout.readline() != b"started\n":
                raise RuntimeError("the process to be killed did not start its handler")
            tally = Tally()
            tally.expect(1)
            worker = tallying("sink", tally)
            stop = asyncio.Event()
            async with asyncio.TaskGroup() as group:
                group.create_task(worker.serve(protocol, stop=stop.wait()))
                await asyncio.sleep(0.5)  # the heir is up and waits, as in a team that runs
                victim.send_signal(signal.SIGKILL)
                killed = monotonic()
                await asyncio.wait_for(tally.done.wait(), lease_s + 30)
                seconds = monotonic() - killed
                stop.set()
        return seconds
    finally:
        if victim.returncode is None:
            victim.kill()
        await victim.wait()


async def takeover(backend: str, scale: float, folder: Path) -> Verdict:
    texts, is_met = [], True
    for lease_s, times in ((2.0, 3), (10.0, 1)):
        worst = 0.0
        for number in range(times):
            path = folder / f"{lease_s}-{number}"
            path.mkdir()
            worst = max(worst, await _takeover_s(target_of(backend, path), lease_s))
        texts.append(f"{worst:.2f} s with a lease of {lease_s:g} s (worst of {times})")
        is_met = is_met and worst <= lease_s + 2
    return Verdict(f"{backend}: takeover after kill -9 <= lease + 2 s", "; ".join(texts), is_met)


async def resume(backend: str, scale: float, folder: Path) -> Verdict:
    """From the moment when a server that was killed answers again until the same objects have sent and handled."""
    server, worst, times = _redis(folder), 0.0, 5
    tally, stop = Tally(), asyncio.Event()
    tally.expect(1)
    async with hw.connect(server.url) as protocol, asyncio.TaskGroup() as group:
        group.create_task(tallying("sink", tally).serve(protocol, stop=stop.wait()))
        for _ in range(times):
            await protocol.send(message(0, "p0"))
            await asyncio.wait_for(tally.done.wait(), WAIT_S)
            server.kill()
            tally.expect(1)
            sending = asyncio.create_task(protocol.send(message(0, "p0")))
            await asyncio.sleep(1.0)  # an outage that is noticed
            server.start()
            is_back = monotonic()
            await sending
            await asyncio.wait_for(tally.done.wait(), WAIT_S)
            worst = max(worst, monotonic() - is_back)
            tally.expect(1)
        stop.set()
    text = f"{worst:.2f} s (worst of {times})"
    return Verdict(f"{backend}: sent and handled <= 2 s after the server is back", text, worst <= 2)


PROOFS: Final[dict[str, Callable[[str, float, Path], Awaitable[Verdict]]]] = {
    "before_the_first_reader": before_the_first_reader,
    "thousand_queues": thousand_queues,
    "backlog_cost": backlog_cost,
    "takeover": takeover,
    "resume": resume,
}
ON: Final = {"takeover": ("sqlite", "redis"), "resume": ("redis",)}
"""A queue in memory dies with its process; a file has no server that could be started again."""


def names(backends: Sequence[str]) -> Iterator[tuple[str, str]]:
    for name in PROOFS:
        for backend in backends:
            if backend in ON.get(name, backends):
                yield name, backend


async def _prove(name: str, backend: str, scale: float) -> Verdict:
    with tempfile.TemporaryDirectory(prefix="bench-") as folder, servers:
        return await PROOFS[name](backend, scale, Path(folder))


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=loop_factory()) as runner:
        result = runner.run(_prove(sys.argv[1], sys.argv[2], float(sys.argv[3]) if len(sys.argv) > 3 else 1.0))
    print(msgspec.json.encode(result).decode())
