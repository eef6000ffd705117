"""Delayed messages whose mover or canceller dies in the middle of it: the log has decided, and nothing stays behind."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import pytest

from hivewire.backends.kafka import delays
from hivewire.backends.kafka.backend import KafkaBackend
from hivewire.engine.protocol import Engine
from hivewire.errors import ConnectionLost
from hivewire.testing.conformance.scenario import counts, empty, number, take, task
from hivewire.testing.conformance.waiting import until_true
from hivewire.testing.leaks import nothing_left_behind
from tests.conformance.kafka_fabric import KafkaFabric

pytestmark = [pytest.mark.processes, pytest.mark.slow, pytest.mark.timeout(120)]


@pytest.fixture
async def fabric(tmp_path: Path) -> AsyncIterator[KafkaFabric]:
    made = KafkaFabric(tmp_path)
    async with nothing_left_behind(), made:
        yield made


def backend_of(protocol: Engine) -> KafkaBackend:
    assert isinstance(protocol.backend, KafkaBackend)
    return protocol.backend


class _Died(Exception):
    pass


async def _dies(*_: object) -> None:
    raise _Died


async def log_of(backend: KafkaBackend, topic: str, partition: int) -> list[tuple[bytes, bytes | None]]:
    """Keys and values, as far as the partition reaches now."""
    end = (await backend.admin.ends([(topic, partition)]))[topic, partition]
    messages = await backend.reader.read(topic, partition, 0, end - 1, range(end)) if end else []
    return [(message.key() or b"", message.value()) for message in messages]


async def left_in(backend: KafkaBackend) -> set[bytes]:
    """Names in the topic of delayed messages that compaction would keep."""
    place = await backend.delays._place("later")
    last = dict(await log_of(backend, backend.names.delayed, place))
    return {name for name, value in last.items() if value is not None}


async def is_cleared(backend: KafkaBackend) -> bool:
    return not await left_in(backend)


async def test_who_dies_before_it_moves_what_it_claimed_is_followed_by_another(fabric: KafkaFabric) -> None:
    protocol = fabric.protocol
    batch = [task("later", n, key=str(n)) for n in range(3)]
    for message in batch:
        await protocol.send(message, delay_s=3.0)
    kafka = backend_of(await fabric.member())
    waiting = await kafka.delays.waiting("later")
    assert waiting is not None
    ats = [at for at, later in waiting.agenda.known.items() if later.life[0] != batch[0].id]
    await kafka.delays._decide("~claim/", "later", await kafka.delays._place("later"), ats)
    # Whoever claims by a clock that is fast has it, although its time has not come.
    assert await protocol.cancel_delayed([message.id for message in batch]) == 1
    assert sorted(number(delivery) for delivery in await take(protocol, "later", 2)) == [1, 2]
    await empty(protocol, "later")
    await until_true(lambda: is_cleared(kafka), "all is cleared away")


@pytest.mark.parametrize("fails", ["dies", "answer lost"])
async def test_what_was_cancelled_stays_so_when_nobody_clears_it_away(
    fabric: KafkaFabric, monkeypatch: pytest.MonkeyPatch, fails: str
) -> None:
    protocol = fabric.protocol
    other = await fabric.member()
    message = task("later", 1)
    await protocol.send(message, delay_s=1.0)
    kafka = backend_of(other)

    async def lost(place: int, names: Sequence[bytes]) -> None:
        raise ConnectionLost("the brokers are away")

    monkeypatch.setattr(kafka.delays, "_remove", _dies if fails == "dies" else lost)
    if fails == "dies":
        with pytest.raises(_Died):
            await other.cancel_delayed([message.id])
    else:
        assert await other.cancel_delayed([message.id]) == 1
    assert await protocol.cancel_delayed([message.id]) == 0
    assert counts(await protocol.depth("later")) == (0, 0, 0, 0)
    assert await left_in(kafka)
    monkeypatch.setattr(delays, "_STALE_S", 0.0)
    await protocol.send(task("later", 2), delay_s=1.5)
    (delivery,) = await take(protocol, "later", 1)
    assert number(delivery) == 2
    await empty(protocol, "later")
    await until_true(lambda: is_cleared(kafka), "who moves has cleared it away")


async def test_what_is_moved_or_cancelled_leaves_nothing(fabric: KafkaFabric) -> None:
    protocol = fabric.protocol
    batch = [task("later", n, key=str(n)) for n in range(20)]
    for n, message in enumerate(batch):
        await protocol.send(message, delay_s=600 if n < 10 else 0.5)
    assert await protocol.cancel_delayed([message.id for message in batch[:10]]) == 10
    assert sorted(number(delivery) for delivery in await take(protocol, "later", 10)) == list(range(10, 20))
    kafka = backend_of(protocol)
    await until_true(lambda: is_cleared(kafka), "all is cleared away")


async def test_what_was_delayed_goes_where_its_key_is(fabric: KafkaFabric) -> None:
    """Moved by a process that has never sent anything there."""
    protocol = fabric.protocol
    await fabric.worker("later")
    keys = [f"k{n}" for n in range(9)]
    for key in keys:
        await protocol.send(task("later", 0, key=key))
        await protocol.send(task("later", 1, key=key), delay_s=0.5)
    await empty(protocol, "later")
    kafka = backend_of(protocol)
    found = defaultdict(list)
    topic = kafka.names.topic("later")
    for partition in range(kafka.topics.partitions[topic]):
        for name, _ in await log_of(kafka, topic, partition):
            found[name.decode()].append(partition)
    assert {key: (len(places), len(set(places))) for key, places in found.items()} == dict.fromkeys(keys, (2, 1))
