"""What a worker of a test does, in a process of its own or inside the test's loop."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from unittest.mock import patch

import msgspec

from hivewire.backend import Append, Duplicate
from hivewire.engine.core import handling
from hivewire.engine.delivery import EngineDelivery
from hivewire.engine.held import Held
from hivewire.engine.protocol import Engine
from hivewire.message import Message
from hivewire.protocol import Protocol
from hivewire.record import Fetched
from hivewire.testing.conformance.journal import Entry, Journal
from hivewire.testing.conformance.obey import Obedient, serve_deliveries, serve_worker


class Spec(msgspec.Struct, kw_only=True):
    """What a worker does: `serve` and `worker` handle messages, `send` sends `count` numbered ones, `die_in_fan_out`
    makes `agent` a member of the group `g`, broadcasts there and dies before it has a copy."""

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
    if spec.program == "die_in_fan_out":
        await _die_in_fan_out(spec, protocol, obedient)
        return
    serve = serve_worker if spec.program == "worker" else serve_deliveries
    stopped = asyncio.ensure_future(stop.wait())
    obedient.say("ready")
    try:
        await serve(obedient, protocol, stop=stopped, concurrency=spec.concurrency)
    finally:
        stopped.cancel()


async def _die_in_fan_out(spec: Spec, protocol: Protocol, obedient: Obedient) -> None:
    """When the store knows that the fan-out runs."""
    assert isinstance(protocol, Engine)
    backend, marked = protocol.backend, asyncio.Event()
    append, mark = backend.append, Held.mark

    async def hang_before_copies(batch: Sequence[Append]) -> Mapping[int, Duplicate | Exception]:
        if any(part.queue == spec.agent for part in batch):
            running = handling.get()
            delivery = None if running is None else running.delivery
            if isinstance(delivery, EngineDelivery) and delivery.fetched.marked:  # as it was taken
                marked.set()
            await asyncio.Event().wait()
        return await append(batch)

    async def told(held: Held, batch: Sequence[Fetched]) -> Sequence[Fetched]:
        refused = await mark(held, batch)
        if held.core.backend is backend and held.is_internal:
            marked.set()
        return refused

    obedient.say("ready")
    await protocol.subscribe(spec.agent, groups=["g"])
    with patch.object(backend, "append", hang_before_copies), patch.object(Held, "mark", told):
        await protocol.broadcast(Message(type="task", sender=spec.name, content={"n": 1}), "g")
        await marked.wait()
        obedient.die()
        await asyncio.Event().wait()


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
