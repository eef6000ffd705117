"""A handler that does what the content of its message says, and writes a journal of it.

The content is `{"n": 3, "do": [["sleep", 0.1], ["raise", 1]]}`. The steps are `STEPS` below. A step that
takes a last attempt happens at that attempt and those before it, and no more afterwards.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import msgspec

from hivewire.coordination.worker import Context, Worker
from hivewire.delivery import Delivery
from hivewire.errors import Reject, RetryAfter
from hivewire.message import Message
from hivewire.protocol import Protocol
from hivewire.testing.conformance.journal import Entry, Journal


class Acts(msgspec.Struct, frozen=True):
    """What the handler can do beside thinking."""

    send: Callable[[str, dict[str, Any]], Awaitable[object]]
    reply: Callable[[Any], Awaitable[object]]
    broadcast: Callable[[str, dict[str, Any]], Awaitable[object]]
    context: Context | None = None
    """Of a `Worker`'s handler."""


class Obedient:
    """One worker's handler. `die` ends the worker at once: by kill -9 where it is a process."""

    def __init__(self, name: str, agent: str, journal: Journal, die: Callable[[], None]) -> None:
        self.name = name
        self.agent = agent
        self._journal = journal
        self.die = die

    def say(self, event: str, note: str = "") -> None:
        self._journal.write(Entry(event=event, worker=self.name, agent=self.agent, note=note))

    async def handle(self, message: Message, attempt: int, acts: Acts) -> None:
        content = message.content if isinstance(message.content, dict) else {}
        entry = Entry(
            event="start",
            worker=self.name,
            agent=self.agent,
            id=message.id,
            key=message.key or message.sender,
            n=content.get("n", -1),
            attempt=attempt,
            note=message.sender,
        )
        self._journal.write(entry)
        note = "done"
        try:
            for step, *arguments in content.get("do", ()):
                await self._step(step, arguments, attempt, acts)
        except asyncio.CancelledError:
            note = "cancelled"
            raise
        except Exception as error:
            note = type(error).__name__
            raise
        finally:
            self._journal.write(
                Entry(event="end", worker=self.name, agent=self.agent, id=entry.id, key=entry.key, n=entry.n,
                      attempt=attempt, note=note)
            )  # fmt: skip

    async def _step(self, step: str, arguments: list[Any], attempt: int, acts: Acts) -> None:
        match step, arguments:
            case "sleep", [seconds]:
                await asyncio.sleep(seconds)
            case "block", [seconds]:
                time.sleep(seconds)  # noqa: ASYNC251 -- that the loop stands still is what is tested
            case "die", [last] if attempt <= last:
                self.die()
                await asyncio.Event().wait()
            case "raise", [last] if attempt <= last:
                raise RuntimeError(f"attempt {attempt} fails as told")
            case "retry_after", [seconds, last] if attempt <= last:
                raise RetryAfter(seconds)
            case "reject", [reason]:
                raise Reject(reason)
            case "reject", [reason, last] if attempt <= last:
                raise Reject(reason)
            case "send", [to, content]:
                await acts.send(to, content)
            case "reply", [content]:
                await acts.reply(content)
            case "effect", [path, last]:
                await self._effect(acts, Path(path), dies=attempt <= last)
            case "broadcast", [group, content]:
                await acts.broadcast(group, content)
            case (("die" | "raise" | "retry_after" | "reject"), _):
                pass
            case _:
                raise AssertionError(f"no such step: {step} {arguments}")

    async def _effect(self, acts: Acts, path: Path, *, dies: bool) -> None:
        """A line in a file, once for each message; dies after it was written and before that is stored."""
        context = acts.context
        assert context is not None
        key = context.effect_key("line")

        async def write() -> str:
            with path.open("a") as file:
                file.write(f"{key}\n")
            if dies:
                self.die()
                await asyncio.Event().wait()
            return "written"

        def find() -> str | None:
            return "found" if path.exists() and key in path.read_text().split() else None

        await context.once("line", write, find=find)


def _broadcaster(obedient: Obedient, protocol: Protocol) -> Callable[[str, dict[str, Any]], Awaitable[object]]:
    async def broadcast(group: str, content: dict[str, Any]) -> None:
        await protocol.broadcast(Message(type="task", sender=obedient.agent, content=content), group)

    return broadcast


async def serve_deliveries(
    obedient: Obedient, protocol: Protocol, *, stop: Awaitable[object], concurrency: int
) -> None:
    """Handle with `Protocol.serve`: what is sent has new ids."""

    async def handle(delivery: Delivery) -> None:
        message = delivery.message

        async def send(to: str, content: dict[str, Any]) -> None:
            await protocol.send(Message(type="task", sender=obedient.agent, to=to, content=content))

        async def reply(content: Any) -> None:
            await protocol.reply(message, content)

        await obedient.handle(message, delivery.attempt, Acts(send, reply, _broadcaster(obedient, protocol)))

    await protocol.serve(obedient.agent, handle, concurrency=concurrency, stop=stop)


async def serve_worker(obedient: Obedient, protocol: Protocol, *, stop: Awaitable[object], concurrency: int) -> None:
    """Handle as a `Worker` does: what is sent has ids that follow from the input."""
    worker = Worker(obedient.agent, concurrency=concurrency)

    @worker.on("task")
    async def task(message: Message, ctx: Context) -> None:
        async def send(to: str, content: dict[str, Any]) -> None:
            await ctx.send("task", to, content)

        await obedient.handle(message, ctx.attempt, Acts(send, ctx.reply, _broadcaster(obedient, protocol), ctx))

    await worker.serve(protocol, stop=stop)
