"""One worker process of a load test; started by `hivewire loadtest --processes`."""

from __future__ import annotations

import argparse
import asyncio
import os
import socket
import sys
import time
from collections.abc import Awaitable, Callable

from hivewire.cli.loadtest_tally import Handled
from hivewire.cli.options import add_protocol_option, connect_from, run_async
from hivewire.cli.supervisor import READY
from hivewire.coordination.serving import StopSignals, stop_with_parent
from hivewire.delivery import Delivery
from hivewire.errors import HivewireError

Note = Callable[[Handled], None]


def handler(run_id: str, work_s: float, note: Note) -> Callable[[Delivery], Awaitable[None]]:
    """A handler that notes each start before anything else, then works for `work_s`."""

    async def handle(delivery: Delivery) -> None:
        content = delivery.message.content
        if not isinstance(content, dict) or content.get("run") != run_id:
            return  # of a run that was broken off, or of somebody else
        note(Handled(time.monotonic_ns(), content["key"], content["number"], content["intended_ns"]))
        if work_s:
            await asyncio.sleep(work_s)

    return handle


async def _serve(args: argparse.Namespace, link: socket.socket) -> int:
    loop = asyncio.get_running_loop()
    stop = loop.create_future()
    file = os.open(args.out, os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def note(record: Handled) -> None:
        # One write a record, before the handler goes on: what the kernel has survives kill -9, so a message
        # that is handled again after the kill is counted twice and never not at all.
        os.write(file, record.packed())

    try:
        with StopSignals(args.grace, lambda: loop.call_soon_threadsafe(stop.set_result, None), second_ends=False):
            async with connect_from(args) as protocol:
                link.sendall(READY)
                await protocol.serve(
                    args.agent,
                    handler(args.run_id, args.work, note),
                    concurrency=args.concurrency,
                    stop=stop,
                    drain_s=args.grace,
                )
    finally:
        os.close(file)
    return 0


def main() -> int:
    parser = argparse.ArgumentParser()
    add_protocol_option(parser)
    parser.add_argument("--agent", required=True)
    parser.add_argument("--run-id", required=True)
    parser.add_argument("--out", required=True)
    parser.add_argument("--link", type=int, required=True)
    parser.add_argument("--concurrency", type=int, required=True)
    parser.add_argument("--work", type=float, default=0.0)
    parser.add_argument("--grace", type=float, default=10.0)
    args = parser.parse_args()
    link = socket.socket(fileno=args.link)
    stop_with_parent(link)
    try:
        return run_async(_serve(args, link))
    except HivewireError as error:
        sys.stderr.write(f"hivewire loadtest, worker process: {error}\n")
        return 2


if __name__ == "__main__":
    sys.exit(main())
