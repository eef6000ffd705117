"""A process that serves three agents and writes down what it handled: `python -m tests.faults.kafka_many URL FILE`."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from hivewire.delivery import Delivery
from hivewire.factory import connect

AGENTS = ("planner", "coder", "critic")


async def main(url: str, path: Path) -> None:
    with path.open("a", buffering=1) as book:

        async def handle(delivery: Delivery) -> None:
            message = delivery.message
            book.write(f"{message.to} {message.content['n']}\n")

        async with connect(url) as protocol:
            await asyncio.gather(*(protocol.serve(agent, handle, concurrency=16) for agent in AGENTS))


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], Path(sys.argv[2])))
