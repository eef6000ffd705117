"""Messages whose time ran out unread. Who owns a shard here takes from it what the engine has not had; of
other shards only those that nobody owns are touched."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING

from hivewire.backend import Letter
from hivewire.backends.redis import scripts
from hivewire.backends.redis.address import Command
from hivewire.backends.redis.keys import EXPIRING, base
from hivewire.backends.redis.link import good
from hivewire.backends.redis.packing import life_of, pack_dead, unpack, unpack_state
from hivewire.errors import BackendError

if TYPE_CHECKING:
    from hivewire.backends.redis.backend import RedisBackend
    from hivewire.backends.redis.member import RedisMember

_PAGE = 100

Place = tuple[int, bytes]
"""Shard and id in its stream."""


async def bury(backend: RedisBackend, consumers: Collection[RedisMember], queue: str | None) -> int:
    """Of one queue, or of all. One whose server is away holds up no other, and is told only if none could be looked at.

    Raises:
        BackendError: a server refused, or none of the queues could be reached.
    """
    link = backend.link
    queues = [name.decode() for name in await link.call("SMEMBERS", EXPIRING)] if queue is None else [queue]
    now_ms = int(backend.now() * 1000)
    asked: list[Command] = []
    for name in map(base, queues):
        asked.append(scripts.run(scripts.MOVE, name, _PAGE))  # nobody may be there who moves what is delayed
        asked.append(("ZRANGEBYSCORE", f"{name}ttl", "-inf", now_ms, "LIMIT", 0, _PAGE))
    # Of one queue it is tried again, as all that is asked; of all queues none waits for one that is away.
    answers = await (link.post(asked) if queue is None else link.ask(asked)) if asked else []
    trouble: BackendError | None = None
    buried = looked = 0
    for name, moved, found in zip(queues, answers[::2], answers[1::2], strict=True):
        try:
            good(moved, f"move delayed messages of {name}")
            places = [_place(member) for member in good(found, f"look what has expired of {name}")]
            if places:
                buried += await _bury(backend, name, places, [each for each in consumers if each.queue == name])
            looked += 1
        except BackendError as error:
            trouble = _passing(error)
    if trouble is not None and not looked:
        raise trouble
    return buried


def _passing(error: BackendError) -> BackendError:
    """Raises:
    BackendError: it is not of a kind that passes by itself.
    """
    if not error.retryable:
        raise error
    return error


def _place(member: bytes) -> Place:
    shard, _, id = member.partition(b":")
    return int(shard), id


async def _bury(backend: RedisBackend, queue: str, places: Sequence[Place], consumers: Sequence[RedisMember]) -> int:
    link, settings, name = backend.link, backend.settings, base(queue)
    async with AsyncExitStack() as stack:
        for consumer in consumers:
            await stack.enter_async_context(consumer.still())
        questions = [("XRANGE", f"{name}s{shard}", id, id) for shard, id in places]
        states = [("HGET", f"{name}st{shard}", id) for shard, id in places]
        answers = await link.ask([*questions, *states])
        answers = [good(answer, f"read what has expired of {queue}") for answer in answers]
        arguments: list[str | bytes | int] = [int(settings.dedup_window_s * 1000), settings.dedup_window_ids]
        gone: list[str] = []
        for number, (shard, id) in enumerate(places):
            entries, state = answers[number], answers[len(places) + number]
            if not entries:
                gone.append(f"{shard}:{id.decode()}")
                continue
            owner, token = _ours(consumers, shard, id)
            fields = entries[0][1]
            record = unpack(fields[1], fields[3])
            stored_ms = int(fields[5] if len(fields) > 5 else id.partition(b"-")[0])
            letter = Letter(
                reason="expired",
                error=f"its time to live of {record.ttl_s} s ran out unread",
                attempts=unpack_state(state).starts if state is not None else 0,
                first_at=stored_ms / 1000,
                worker="store",
            )
            arguments += [shard, owner, token, id, record.id, pack_dead(record, letter), life_of(record)]
        if gone:
            await link.call("ZREM", f"{name}ttl", *gone)
        if len(gone) == len(places):
            return 0
        (answer,) = await link.ask([scripts.run(scripts.BURY, name, *arguments)])
        return int(good(answer, f"bury what has expired of {queue}"))


def _ours(consumers: Sequence[RedisMember], shard: int, id: bytes) -> tuple[str, int]:
    """The member of this process that owns the shard and has not given the record to its engine."""
    for consumer in consumers:
        held = consumer.unread(shard, id)
        if held is not None:
            return consumer.seat.name, held.token
    return "", 0
