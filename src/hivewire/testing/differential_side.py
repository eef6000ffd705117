"""One of the two stores that are compared: does operations and tells what was seen of them."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import Any, Final, Self

from hivewire.backend import Depth, Features, Mode
from hivewire.delivery import Delivery
from hivewire.engine.protocol import Engine
from hivewire.errors import HivewireError
from hivewire.factory import connect
from hivewire.message import Message
from hivewire.protocol import DeadLetter, Receipt
from hivewire.testing.differential_program import AGENTS, COMPETING, ECHO, TYPES, Operation, Outcome, Told

Seen = Any
"""What was observed, as values that can be compared and printed."""

PATIENCE_S: Final = 10.0
_LONG_S: Final = 3600.0
_BRIEF_S: Final = 0.05
_MANY: Final = 200
_PAUSE_S: Final = 0.002


class Side:
    """`model` is what the other side has seen: there this side waits until it has seen as much, or for
    `PATIENCE_S`. Without it, this side is the model, and takes what is there at once.

    A store that does not look at idempotency keys holds the copies until somebody reads them, and tells so by
    `duplicate` None: so many more may wait there, and none when all was taken."""

    def __init__(self, url: str, **settings: Any) -> None:
        self._url = url
        self._settings = {"lease_s": 300.0, "retry_first_s": 0.0, "retry_most_s": 0.0, **settings}
        self._protocol: Engine
        self._ids: dict[str, int] = {}
        self._held: dict[str, dict[int, Delivery]] = {}
        self._members: dict[str, set[str]] = {}
        self._left: dict[str, int] = {}
        self._first: dict[str, Told] = {}
        """What was sent first with an idempotency key."""
        self._copies: Counter[str] = Counter()
        """So many of an agent may lie in the store unread."""

    async def _connect(self) -> Engine:
        made = connect(self._url, **self._settings)
        assert isinstance(made, Engine)
        return await made.__aenter__()

    @property
    def features(self) -> Features:
        return self._protocol.backend.features

    async def __aenter__(self) -> Self:
        self._protocol = await self._connect()
        for agent in AGENTS:
            await self._protocol.subscribe(agent, TYPES, mode=_mode(agent))
        await self._protocol.subscribe(ECHO)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._protocol.close(0.5)

    async def do(self, operation: Operation, model: Seen = None) -> Seen:
        """An error of ours is something to be seen; any other one ends the run."""
        try:
            return await getattr(self, f"_{operation.kind}")(operation, model)
        except HivewireError as error:
            return f"raised {error.__class__.__name__}"

    # -- sending

    def _message(self, told: Told, to: str | None = None) -> Message:
        content = {"n": told.n, "script": told.script}
        message = Message(
            id=f"m-{told.n}",
            type=told.type,
            sender="tester",
            to=told.agent if to is None else to,
            key=told.key,
            priority=told.priority,
            content=content,
        )
        self._ids[message.id] = told.n
        return message

    def _receipt(self, receipt: Receipt) -> Seen:
        return [self._ids[receipt.id], receipt.duplicate]

    async def _send(self, operation: Operation, model: Seen) -> Seen:
        return self._receipt(await self._protocol.send(self._message(operation.told[0])))

    _resend = _send

    async def _send_many(self, operation: Operation, model: Seen) -> Seen:
        receipts = await self._protocol.send_many([self._message(told) for told in operation.told])
        return [self._receipt(receipt) for receipt in receipts]

    async def _idempotent(self, operation: Operation, model: Seen) -> Seen:
        told = operation.told[0]
        message = self._message(told)
        if self.features.store_dedup:
            return self._receipt(await self._protocol.send(message, idempotency_key=operation.name))
        first = self._first.setdefault(operation.name, told)
        if first is not told:  # the same again, under another id
            self._copies[told.agent] += 1
            message = self._message(first).replace(id=message.id)
        receipt = await self._protocol.send(message, idempotency_key=operation.name)
        if model == [first.n, first is not told] and self._receipt(receipt) == [told.n, None]:
            return model
        return self._receipt(receipt)

    async def _delay(self, operation: Operation, model: Seen) -> Seen:
        return self._receipt(await self._protocol.send(self._message(operation.told[0]), delay_s=_LONG_S))

    async def _delay_briefly(self, operation: Operation, model: Seen) -> Seen:
        before = await self._protocol.depth(operation.agent)
        await self._protocol.send(self._message(operation.told[0]), delay_s=_BRIEF_S)
        return await self._comes_to(
            operation.agent, model, lambda depth: (depth.scheduled, depth.ready) == (before.scheduled, before.ready + 1)
        )

    async def _expire(self, operation: Operation, model: Seen) -> Seen:
        before = await self._protocol.depth(operation.agent)
        await self._protocol.send(self._message(operation.told[0]).replace(ttl_s=_BRIEF_S))
        if not self.features.finds_expired:
            await asyncio.sleep(2 * _BRIEF_S)  # whoever reads it next finds that its time is over
            return model
        return await self._comes_to(operation.agent, model, lambda depth: depth.dead == before.dead + 1)

    async def _comes_to(self, agent: str, model: Seen, condition: Callable[[Depth], bool]) -> Seen:
        """Until the condition holds, and on the store the same is seen: a copy may look like what is waited for."""

        async def look() -> tuple[bool, Seen]:
            depth = await self._protocol.depth(agent)
            seen = self._told_of(agent, depth, model)
            return condition(depth) and (model is None or seen == model), seen

        return await _eventually(look)

    def _told_of(self, agent: str, depth: Depth, model: Seen) -> Seen:
        """How much a member takes ahead of its handlers is up to the store; and how many copies nobody has read yet."""
        seen = [depth.ready + depth.in_flight, depth.scheduled, depth.dead]
        if model is not None and 0 < seen[0] - model[0] <= self._copies[agent]:
            seen[0] = model[0]
        return seen

    # -- receiving

    async def _take(self, agent: str, model: Seen, count: int, handle: Callable[[Delivery], Awaitable[None]]) -> Seen:
        """All that is there, or until so many came as on the model; then what comes to nobody: what is refused, and
        duplicates. Returns how much is left."""
        if model is not None and not model["left"][0]:
            self._copies.pop(agent, None)  # nothing hides one
        loop = asyncio.get_running_loop()
        deadline, taken = loop.time() + PATIENCE_S, 0
        self._left.pop(agent, None)
        while model is not None and taken < count and loop.time() < deadline:
            taken += await self._take_some(agent, 0.2, handle)
        while True:
            taken = await self._take_some(agent, 0.0, handle)
            if model is None:
                if not taken and not await self._was_refused(agent):
                    break
            elif not taken and (await self._left_in(agent, model) == model["left"] or loop.time() > deadline):
                break
        return await self._left_in(agent, model)

    async def _left_in(self, agent: str, model: Seen) -> Seen:
        return self._told_of(agent, await self._protocol.depth(agent), None if model is None else model["left"])

    async def _take_some(self, agent: str, wait_s: float, handle: Callable[[Delivery], Awaitable[None]]) -> int:
        batch = await self._protocol.receive(agent, limit=_MANY, wait_s=wait_s)
        for delivery in batch:
            await handle(delivery)
        return len(batch)

    async def _was_refused(self, agent: str) -> bool:
        """Nothing was handed out, perhaps because what was first went to the dead letters; when it is there."""
        open_still = len(self._held.get(agent, ()))
        await self._comes_to(agent, None, lambda depth: depth.in_flight == open_still)
        left, self._left[agent] = self._left.get(agent), _held(await self._protocol.depth(agent))
        return left != self._left[agent]

    async def _hold(self, operation: Operation, model: Seen) -> Seen:
        held = self._held.setdefault(operation.agent, {})
        seen: list[tuple[int, int]] = []

        async def keep(delivery: Delivery) -> None:
            held[delivery.message.content["n"]] = delivery
            seen.append((delivery.message.content["n"], delivery.attempt))

        left = await self._take(operation.agent, model, len(model["held"]) if model else 0, keep)
        return {"held": sorted(seen), "left": left}

    async def _settle(self, operation: Operation, model: Seen) -> Seen:
        held = self._held.pop(operation.agent, {})
        seen = []
        for place, n in enumerate(sorted(held)):
            outcome = operation.outcomes[place % len(operation.outcomes)]
            seen.append((n, await _settled(held[n], outcome)))
        return seen

    async def _drain(self, operation: Operation, model: Seen) -> Seen:
        """By key, in its order; of a competing queue, by message."""
        lanes: dict[str, list[tuple[int, int, str]]] = {}

        async def settle(delivery: Delivery) -> None:
            n, script = delivery.message.content["n"], delivery.message.content["script"]
            outcome: Outcome = script[delivery.attempt - 1] if delivery.attempt <= len(script) else "ack"
            lane = str(n) if operation.agent == COMPETING else str(delivery.message.key)
            lanes.setdefault(lane, []).append((n, delivery.attempt, await _settled(delivery, outcome)))

        left = await self._take(operation.agent, model, sum(map(len, model["lanes"].values())) if model else 0, settle)
        return {"lanes": dict(sorted(lanes.items())), "left": left}

    async def _ask(self, operation: Operation, model: Seen) -> Seen:
        asking = asyncio.ensure_future(self._protocol.request(self._message(operation.told[0]), timeout_s=PATIENCE_S))
        try:
            for delivery in await self._protocol.receive(ECHO, limit=1, wait_s=PATIENCE_S):
                async with delivery:
                    await self._protocol.reply(delivery.message, [delivery.message.content, delivery.attempt])
            reply = await asking
        finally:
            asking.cancel()
        return [reply.type, reply.sender, reply.content, self._ids[reply.in_reply_to or ""]]

    # -- groups and types

    async def _join(self, operation: Operation, model: Seen) -> Seen:
        await self._protocol.subscribe(operation.agent, groups=[operation.name], mode=_mode(operation.agent))
        self._members.setdefault(operation.name, set()).add(operation.agent)
        return await self._subscription(operation.agent)

    async def _leave(self, operation: Operation, model: Seen) -> Seen:
        await self._protocol.unsubscribe(operation.agent, groups=[operation.name])
        self._members.get(operation.name, set()).discard(operation.agent)
        return await self._subscription(operation.agent)

    async def _broadcast(self, operation: Operation, model: Seen) -> Seen:
        """Seen when each member has its own."""
        members = sorted(self._members.get(operation.name, ()))
        before = {member: _held(await self._protocol.depth(member)) for member in members}
        await self._protocol.broadcast(self._message(operation.told[0], operation.name), operation.name)
        seen = []
        for place, member in enumerate(members):
            come = before[member] + 1
            expected = model[place] if model is not None else None
            seen.append(await self._comes_to(member, expected, lambda depth, come=come: _held(depth) == come))  # type: ignore[misc]
        return seen

    async def _subscribe(self, operation: Operation, model: Seen) -> Seen:
        await self._protocol.subscribe(operation.agent, [operation.name], mode=_mode(operation.agent))
        return await self._subscription(operation.agent)

    async def _unsubscribe(self, operation: Operation, model: Seen) -> Seen:
        await self._protocol.unsubscribe(operation.agent, [operation.name])
        return await self._subscription(operation.agent)

    async def _subscription(self, agent: str) -> Seen:
        found = await self._protocol.subscription(agent)
        return [None if found.types is None else sorted(found.types), sorted(found.groups)]

    # -- looking

    async def _depth(self, operation: Operation, model: Seen) -> Seen:
        async def look() -> tuple[bool, Seen]:
            found = {
                agent: self._told_of(agent, await self._protocol.depth(agent), model and model[agent])
                for agent in (*AGENTS, ECHO)
            }
            return model is None or found == model, found

        return await _eventually(look)

    async def _dead(self, operation: Operation, model: Seen) -> Seen:
        async def look() -> tuple[bool, Seen]:
            letters = await self._protocol.dead_letters(operation.agent or None, limit=10_000)
            found = sorted([self._letter(letter) for letter in letters])
            return model is None or found == model, found

        return await _eventually(look)

    def _letter(self, letter: DeadLetter) -> Seen:
        n = letter.message.content["n"] if letter.message is not None else -1
        return (letter.agent, n, letter.reason, letter.attempts)

    async def _replay(self, operation: Operation, model: Seen) -> Seen:
        await self._has_dead(operation.agent, model)
        revived = await self._protocol.replay(operation.agent)
        await asyncio.sleep(2 * _BRIEF_S)  # what had expired does so again, before anybody can have it
        await self._protocol.depth(operation.agent)
        return revived

    async def _purge(self, operation: Operation, model: Seen) -> Seen:
        await self._has_dead(operation.agent, model)
        return await self._protocol.purge_dead(operation.agent)

    async def _has_dead(self, agent: str, wanted: Seen) -> None:
        if wanted is not None:
            await self._comes_to(agent, None, lambda depth: depth.dead == wanted)

    async def _restart(self, operation: Operation, model: Seen) -> Seen:
        """The client; what it held is given back."""
        await self._protocol.close(0.5)
        self._held.clear()
        self._protocol = await self._connect()
        return None


def _mode(agent: str) -> Mode:
    return "competing" if agent == COMPETING else "ordered"


def _held(depth: Depth) -> int:
    return depth.ready + depth.in_flight + depth.scheduled


async def _settled(delivery: Delivery, outcome: Outcome) -> str:
    try:
        if outcome == "ack":
            await delivery.ack()
        elif outcome == "nack":
            await delivery.nack(0)
        else:
            await delivery.reject("so it was told")
    except HivewireError as error:
        return f"{outcome} raised {error.__class__.__name__}"
    return outcome


async def _eventually(look: Callable[[], Awaitable[tuple[bool, Seen]]]) -> Seen:
    """What is seen when it is right; the last that was seen if it does not become so."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + PATIENCE_S
    while True:
        is_right, seen = await look()
        if is_right or loop.time() > deadline:
            return seen
        await asyncio.sleep(_PAUSE_S)
