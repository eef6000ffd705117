"""A process of a team under test: `python -m tests.faults.coordination_member coordinator|worker PROTOCOL LEDGER FILE`.

A worker appends a line to the file for each start of its handler.
"""

from __future__ import annotations

import asyncio
import os
import random
import sys
from typing import Any

import hivewire as hw
from hivewire.coordination.team import announced

LEASE_S = 1.0


async def coordinate(protocol: hw.Protocol, ledger_url: str) -> None:
    async with hw.open_ledger(ledger_url) as ledger, hw.Coordinator(None, protocol, ledger=ledger, lease_s=LEASE_S):
        print("ready", flush=True)
        await asyncio.Event().wait()


async def work(protocol: hw.Protocol, file: str) -> None:
    worker = hw.Worker("worker", capabilities=["work"], concurrency=8, mode="competing")
    started = os.open(file, os.O_WRONLY | os.O_APPEND | os.O_CREAT)

    @worker.on("task", retry=hw.Retry(max_attempts=20, first_s=0.05, most_s=0.2))
    async def handle(task: hw.Message, ctx: hw.Context) -> dict[str, Any]:
        os.write(started, f"{task.content['run']} {task.content['subtask']} {task.id}\n".encode())
        await asyncio.sleep(random.uniform(0.0, 0.3))
        return {"subtask": task.content["subtask"], "saw": sorted(task.content["outputs"])}

    async with announced(protocol, [worker], every_s=0.3):
        print("ready", flush=True)
        await worker.serve(protocol)


async def main() -> None:
    kind, protocol_url, ledger_url, file = sys.argv[1:]
    async with hw.connect(protocol_url, lease_s=LEASE_S) as protocol:
        await (coordinate(protocol, ledger_url) if kind == "coordinator" else work(protocol, file))


if __name__ == "__main__":
    asyncio.run(main())
