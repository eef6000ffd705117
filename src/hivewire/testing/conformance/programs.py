"""What a worker of a test does, in a process of its own or inside the test's loop."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import msgspec

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
    stopped = asyncio.ensure_future(stop.wait())
    obedient.say("ready")
    try:
        await serve(obedient, protocol, stop=stopped, concurrency=spec.concurrency)
    finally:
        stopped.cancel()


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
