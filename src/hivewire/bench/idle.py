"""What agents cost that wait for messages: memory, and the CPU of waiting.

python -m hivewire.bench.idle BACKEND AGENTS [URL | FOLDER]
"""

from __future__ import annotations

import asyncio
import gc
import resource
import sys
import tempfile
from pathlib import Path
from time import process_time
from typing import Final

import msgspec

import hivewire as hw
from hivewire.coordination.serving import loop_factory

_LOOK_S: Final = 0.25
_QUIET: Final = 0.05
_PATIENCE: Final = 240
"""Looks; a backend that is busier than `_QUIET` by itself is measured then."""


class Idle(msgspec.Struct, kw_only=True):
    """Agents served in one process, none of which has anything to do."""

    backend: str
    agents: int
    mb: float
    cpu_percent: float

    @property
    def mb_per_10_000(self) -> float:
        return self.mb / self.agents * 10_000

    @property
    def text(self) -> str:
        many = "" if self.agents == 10_000 else f" ({self.mb_per_10_000:.0f} MB per 10,000)"
        return (
            f"{self.agents:,} idle agents on {self.backend}: {self.mb:.1f} MB{many}, {self.cpu_percent:.1f} % of a core"
        )


def resident_mb() -> float:
    """In memory now; where the system does not tell, the most so far."""
    try:
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    except OSError:  # not Linux
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return pages * resource.getpagesize() / 1e6


def _agent(number: int) -> hw.Worker:
    worker = hw.Worker(f"agent-{number}")

    @worker.on("task")
    async def handle(message: hw.Message, ctx: hw.Context) -> None:
        return None

    return worker


async def _settled() -> float:
    """Until nobody is starting any more; the share of a core that waiting takes."""
    share, quiet = 1.0, 0
    for _ in range(_PATIENCE):
        before = process_time()
        await asyncio.sleep(_LOOK_S)
        share = (process_time() - before) / _LOOK_S
        quiet = quiet + 1 if share < _QUIET else 0
        if quiet == 4:
            break
    return share


async def measure(backend: str, agents: int, url: str) -> Idle:
    async with hw.connect(url) as protocol:
        stop: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        first = asyncio.create_task(_agent(agents).serve(protocol, stop=stop))
        await _settled()  # what is imported and made once for all
        gc.collect()
        before = resident_mb()
        serving = [asyncio.create_task(_agent(number).serve(protocol, stop=stop)) for number in range(agents)]
        share = await _settled()
        gc.collect()
        mb = resident_mb() - before
        stop.set_result(None)
        await asyncio.gather(first, *serving)
    return Idle(backend=backend, agents=agents, mb=mb, cpu_percent=share * 100)


def main(backend: str, agents: int, where: str = "") -> None:
    folder_in = where if backend == "sqlite" and where else None
    with (
        tempfile.TemporaryDirectory(prefix="hivewire-bench-", dir=folder_in) as folder,
        asyncio.Runner(loop_factory=loop_factory()) as runner,
    ):
        url = "memory://idle" if backend == "memory" else f"sqlite:///{folder}/idle.db"
        print(msgspec.json.encode(runner.run(measure(backend, agents, url))).decode())


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), *sys.argv[3:])
