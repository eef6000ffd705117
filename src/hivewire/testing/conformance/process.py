"""The program of a worker that is a process of its own, so that it can be killed, frozen and stopped.

`python -m hivewire.testing.conformance.process SPEC`, where SPEC is the JSON of a `Spec`.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from pathlib import Path
from typing import Any

import msgspec

from hivewire.factory import connect
from hivewire.message import Message
from hivewire.protocol import Protocol
from hivewire.testing.conformance.journal import Entry, Journal
from hivewire.testing.conformance.obey import Obedient, serve_deliveries, serve_worker


class Spec(msgspec.Struct, kw_only=True):
    """What a worker does: `serve` and `worker` handle messages, `send` sends `count` numbered ones."""

    name: str
    agent: str
    url: str
    journal: str
    settings: dict[str, Any]
    program: str = "serve"
    concurrency: int = 1
    count: int = 0
    keys: int = 1
    idempotency_key: str | None = None


async def run_program(spec: Spec, protocol: Protocol, obedient: Obedient, stop: asyncio.Event) -> None:
    """Run until done or until `stop`; used by processes and by workers inside a test's own loop."""
    if spec.program == "send":
        await _send_numbered(spec, protocol, obedient)
        return
    serve = serve_worker if spec.program == "worker" else serve_deliveries
    obedient.say("ready")
    await serve(obedient, protocol, stop=stop.wait(), concurrency=spec.concurrency)


async def _send_numbered(spec: Spec, protocol: Protocol, obedient: Obedient) -> None:
    """A `sent` line follows each receipt, so that what has a line was promised."""
    journal = Journal(Path(spec.journal))
    obedient.say("ready")
    try:
        for n in range(spec.count):
            key = f"{spec.name}-{n % spec.keys}"
            message = Message(type="task", sender=spec.name, to=spec.agent, key=key, content={"n": n})
            receipt = await protocol.send(message, idempotency_key=spec.idempotency_key)
            journal.write(
                Entry(event="sent", worker=spec.name, agent=spec.agent, id=receipt.id, key=key, n=n,
                      note=str(receipt.duplicate))
            )  # fmt: skip
    finally:
        journal.close()


def kill_this_process() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


async def main(spec: Spec) -> None:
    journal = Journal(Path(spec.journal))
    obedient = Obedient(spec.name, spec.agent, journal, kill_this_process)
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    async with connect(spec.url, **spec.settings) as protocol:
        await run_program(spec, protocol, obedient, stop)
    obedient.say("bye")
    journal.close()


if __name__ == "__main__":
    asyncio.run(main(msgspec.json.decode(sys.argv[1], type=Spec)))
