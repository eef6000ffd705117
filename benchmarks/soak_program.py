"""Sends and handles at a fixed rate, and prints once a second how much memory and space in the store is in use.

python -m benchmarks.soak_program URL SECONDS RATE
"""

from __future__ import annotations

import asyncio
import json
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlsplit

import hivewire as hw
from hivewire.bench.idle import resident_mb


def _used(url: str) -> Callable[[], int]:
    """What asks how many bytes the store takes: a folder's files, a Redis server's `used_memory`, else nothing."""
    if url.startswith("sqlite"):
        folder = Path(url.removeprefix("sqlite:///")).parent
        return lambda: sum(path.stat().st_size for path in folder.glob("*"))
    if url.startswith("redis"):
        place = urlsplit(url)
        return lambda: _used_memory((place.hostname or "127.0.0.1", place.port or 6379))
    return lambda: 0


def _used_memory(place: tuple[str, int]) -> int:
    with socket.create_connection(place, timeout=5.0) as connection:
        connection.sendall(b"INFO memory\r\n")
        said = connection.recv(1 << 16)
    return int(said.split(b"used_memory:", 1)[1].split(b"\r\n", 1)[0])


def _messages(first: int, count: int) -> list[hw.Message]:
    return [
        hw.Message(
            type="task",
            sender="soak",
            to="soak",
            key=f"k{n % 97}" if n % 3 else hw.UNORDERED,
            content={"n": n, "text": "x" * 200},
        )
        for n in range(first, first + count)
    ]


async def main(url: str, seconds: int, rate: int) -> None:
    used, handled = _used(url), 0
    loop = asyncio.get_running_loop()
    stop: asyncio.Future[None] = loop.create_future()

    async def handle(delivery: hw.Delivery) -> None:
        nonlocal handled
        n = delivery.message.content["n"]
        if n % 50 == 0 and delivery.attempt == 1:
            raise ValueError("as told")
        if n % 1_000 == 1:
            raise hw.Reject("as told")
        handled += 1

    async def send(hive: hw.Protocol) -> None:
        each = rate // 10
        for second in range(seconds):
            began = loop.time()
            for tenth in range(1, 11):
                batch = _messages((second * 10 + tenth - 1) * each + 1, each)
                await hive.send_many(batch)
                late = batch[0].replace(id=f"{batch[0].id}-late")
                await hive.send(late, delay_s=0.5, idempotency_key=late.id)
                await asyncio.sleep(max(0.0, began + 0.1 * tenth - loop.time()))
            if second % 10 == 9:
                await hive.purge_dead("soak")
                await hive.cleanup(older_than_s=5)
            point = {"t": second, "memory": resident_mb() * 1e6, "store": used(), "handled": handled}
            print(json.dumps(point), flush=True)
        stop.set_result(None)

    # Windows that are full within the first seconds: what is remembered by design is not what is looked for.
    async with hw.connect(
        url, dedup_window_ids=2_000, retry_first_s=0.05, retry_most_s=0.1, trail_bytes=65_536
    ) as hive:
        sender = asyncio.create_task(send(hive))
        await hive.serve("soak", handle, concurrency=8, stop=stop)
        await sender
        depth = await hive.depth("soak")
        print(json.dumps({"sent": seconds * rate, "left": depth.ready + depth.in_flight}), flush=True)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3])))
