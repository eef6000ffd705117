"""How many steps of the interpreter a message takes, and in which functions: the same on any machine, loaded or not.

python -m benchmarks.steps PEER WORKLOAD [COUNT]
"""

from __future__ import annotations

import asyncio
import sys
import tempfile
from collections import Counter
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

from benchmarks.peers import PEERS
from hivewire.bench.peers import make
from hivewire.bench.workload import QUEUES, Peer, Tally, produce
from hivewire.coordination.serving import loop_factory

SHOWN = 30


class Steps:
    """Counts bytecode instructions, by function. What is done in C counts as the one step that calls it."""

    def __init__(self) -> None:
        self.of: Counter[CodeType] = Counter()

    def __enter__(self) -> Steps:
        sys.settrace(self._entered)
        return self

    def __exit__(self, *error: object) -> None:
        sys.settrace(None)

    def _entered(self, frame: FrameType, event: str, argument: Any) -> Any:
        frame.f_trace_opcodes, frame.f_trace_lines = True, False
        return self._stepped

    def _stepped(self, frame: FrameType, event: str, argument: Any) -> Any:
        if event == "opcode":
            self.of[frame.f_code] += 1
        return self._stepped


async def count(peer: Peer, workload: str, messages: int, folder: Path) -> Steps:
    peer.queues = QUEUES.get(workload, 1)
    await peer.open(folder)
    tally, stop = Tally(), asyncio.Event()
    consumer = asyncio.create_task(peer.answer(stop) if workload == "W6" else peer.consume(tally, stop))
    for number in (500, messages):  # the first time to warm up
        tally.expect(number)
        with Steps() as steps:
            await produce(peer, workload, number, tally)
            await tally.done.wait()
    stop.set()
    await consumer
    await peer.close()
    return steps


def main(name: str, workload: str, messages: int = 3_000) -> None:
    with tempfile.TemporaryDirectory(prefix="steps-") as folder, asyncio.Runner(loop_factory=loop_factory()) as runner:
        steps = runner.run(count(make(PEERS[name]), workload, messages, Path(folder)))
    print(f"{name}, {workload}: {steps.of.total() / messages:.0f} steps a message")
    for code, number in steps.of.most_common(SHOWN):
        print(f"{number / messages:8.1f}  {code.co_qualname}  {Path(code.co_filename).name}:{code.co_firstlineno}")


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], *map(int, sys.argv[3:]))
