"""Sends and handles at a fixed rate, and prints once a second how much memory and file space is in use."""

from __future__ import annotations

import asyncio
import json
import resource
import sys
from pathlib import Path

import hivewire as hw


async def main(url: str, seconds: int, rate: int) -> None:
    folder = Path(url.removeprefix("sqlite:///")).parent if url.startswith("sqlite") else None
    # Windows that are full within the first seconds: what is remembered by design is not what is looked for.
    async with hw.connect(
        url, dedup_window_ids=2_000, retry_first_s=0.05, retry_most_s=0.1, trail_bytes=65_536
    ) as hive:
        stop: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        handled = 0

        async def handle(delivery: hw.Delivery) -> None:
            nonlocal handled
            n = delivery.message.content["n"]
            if n % 50 == 0 and delivery.attempt == 1:
                raise ValueError("as told")
            if n % 1_000 == 1:
                raise hw.Reject("as told")
            handled += 1

        async def send() -> None:
            n = 0
            for second in range(seconds):
                began = asyncio.get_running_loop().time()
                for tenth in range(1, 11):
                    batch = []
                    for _ in range(rate // 10):
                        n += 1
                        key = f"k{n % 97}" if n % 3 else hw.UNORDERED
                        content = {"n": n, "text": "x" * 200}
                        batch.append(hw.Message(type="task", sender="soak", to="soak", key=key, content=content))
                    await hive.send_many(batch)
                    late = batch[0].replace(id=f"{batch[0].id}-late")
                    await hive.send(late, delay_s=0.5, idempotency_key=late.id)
                    await asyncio.sleep(max(0.0, began + 0.1 * tenth - asyncio.get_running_loop().time()))
                if second % 10 == 9:
                    await hive.purge_dead("soak")
                    await hive.cleanup(older_than_s=5)
                used = sum(path.stat().st_size for path in folder.glob("*")) if folder else 0
                resident = int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
                print(json.dumps({"t": second, "memory": resident, "files": used, "handled": handled}), flush=True)
            stop.set_result(None)

        sender = asyncio.create_task(send())
        await hive.serve("soak", handle, concurrency=8, stop=stop)
        await sender
        depth = await hive.depth("soak")
        print(json.dumps({"sent": seconds * rate, "left": depth.ready + depth.in_flight}), flush=True)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3])))
