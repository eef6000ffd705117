"""A process of its own on a ledger, for tests: `python -m hivewire.testing.ledgers.child URL SETTINGS`.

Reads an order a line from its standard input and writes a line for each; ends with its input.
"""

from __future__ import annotations

import asyncio
import sys

import msgspec

from hivewire.coordination.ledger import Guard, Ledger, Task, TaskChange, open_ledger
from hivewire.errors import VersionConflict


async def obey(ledger: Ledger, order: str, *words: str) -> str:
    """Carry out one order."""
    if order == "priority":
        return str((await ledger.update_task(words[0], TaskChange(priority=int(words[1])))).priority)
    if order == "get":
        task = await ledger.get_task(words[0])
        return f"{task.priority} {task.version}"
    if order == "delete":
        await ledger.delete_task(words[0])
        return "deleted"
    if order == "create":
        return str((await ledger.create_task(Task(name="from the child", id=words[0]))).version)
    if order == "add":
        await add(ledger, words[0], int(words[1]))
        return "done"
    return order


async def add(ledger: Ledger, task_id: str, times: int) -> None:
    """Add one to the counter in a task's metadata, so often."""
    while times:
        seen = await ledger.get_task(task_id)
        try:
            more = TaskChange(metadata={"n": seen.metadata["n"] + 1})
            await ledger.update_task(task_id, more, Guard(version=seen.version))
        except VersionConflict:
            continue
        times -= 1


async def main() -> None:
    url, settings = sys.argv[1:]
    async with open_ledger(url, migrate=True, **msgspec.json.decode(settings)) as ledger:
        while line := await asyncio.to_thread(sys.stdin.readline):
            if line.startswith("work"):
                while True:
                    task = await ledger.create_task(Task(name="work"))
                    await ledger.complete_task(task.id)
                    print(task.id, flush=True)
            print(await obey(ledger, *line.split()), flush=True)


if __name__ == "__main__":
    asyncio.run(main())
