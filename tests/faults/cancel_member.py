"""A worker whose handlers note when they begin, are cancelled, and end:
`python -m tests.faults.cancel_member PROTOCOL FILE`. Times are those of `time.monotonic`.
"""

from __future__ import annotations

import asyncio
import os
import sys
import time
from pathlib import Path
from typing import Any

import hivewire as hw
from hivewire.coordination.processes import ProcessContext

LEASE_S = 2.0
FILE = "CANCEL_TEST_FILE"
RELEASED = ".released"
"""A file of this ending lets the threads end."""


def note(what: str, task: hw.Message) -> None:
    with open(os.environ[FILE], "ab", buffering=0) as file:
        file.write(f"{time.monotonic()!r} {what} {task.type} {task.content['subtask']} {os.getpid()}\n".encode())


async def on_the_loop(task: hw.Message, ctx: hw.Context) -> Any:
    note("began", task)
    try:
        await asyncio.sleep(600)
    except asyncio.CancelledError:
        note("cancelled", task)
        raise


def in_a_thread(task: hw.Message, ctx: hw.Context) -> Any:
    note("began", task)
    while not Path(os.environ[FILE] + RELEASED).exists():
        time.sleep(0.05)
    note("ended", task)
    return {"late": True}


def in_a_process(task: hw.Message, ctx: ProcessContext) -> Any:
    note("began", task)
    time.sleep(600)


def workers() -> list[hw.Worker]:
    kinds: dict[str, tuple[Any, bool]] = {
        "loop": (on_the_loop, False),
        "thread": (in_a_thread, False),
        "process": (in_a_process, True),
    }
    made = []
    for name, (handler, process) in kinds.items():
        worker = hw.Worker(name, capabilities=[name], concurrency=2, mode="competing")
        worker.on("task", process=process)(handler)
        made.append(worker)
    return made


async def main() -> None:
    protocol_url, os.environ[FILE] = sys.argv[1:]
    async with hw.connect(protocol_url, lease_s=LEASE_S) as protocol, asyncio.TaskGroup() as group:
        for worker in workers():
            group.create_task(worker.serve(protocol))
        print("ready", flush=True)


if __name__ == "__main__":
    asyncio.run(main())
