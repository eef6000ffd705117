"""Three brokers, copies on all of them, two of which must have a message: what dies, stands still or loses its link."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from confluent_kafka.admin import (  # type: ignore[attr-defined]  # they are public
    AdminClient,
    AlterConfigOpType,
    ConfigEntry,
    ConfigResource,
    ResourceType,
)

from hivewire.backends.kafka import KafkaBackend
from hivewire.engine.protocol import Engine
from hivewire.errors import BackendError, ConnectionLost
from hivewire.factory import connect
from hivewire.testing.conformance.scenario import empty, send_numbered, take, task
from hivewire.testing.conformance.waiting import SOAK, count, until, until_true
from hivewire.testing.kafka_servers import Broker, Cluster
from hivewire.testing.leaks import nothing_left_behind
from hivewire.testing.proxy import Proxy
from hivewire.testing.servers import free_port
from tests.faults.load import survive
from tests.needed import needed

pytestmark = [pytest.mark.processes, pytest.mark.slow, pytest.mark.timeout(1200 if SOAK else 240)]


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    made = Cluster(tmp_path_factory.mktemp("cluster"))
    with needed():
        made.__enter__()
    try:
        yield made
    finally:
        made.__exit__(None, None, None)


@pytest.fixture
async def cluster(shared: Cluster) -> Cluster:
    """Whole again after the test before."""
    admin = AdminClient({"bootstrap.servers": ",".join(broker.address for broker in shared.brokers)})

    async def is_whole() -> bool:
        found = await asyncio.to_thread(admin.list_topics, timeout=10)
        parts = [part for topic in found.topics.values() for part in topic.partitions.values()]
        return len(found.brokers) == 3 and all(
            part.leader >= 0 and len(part.isrs) == len(part.replicas) for part in parts
        )

    await until_true(is_whole, "three brokers with all copies", 60)
    return shared


@pytest.fixture(autouse=True)
async def nothing_is_left() -> AsyncIterator[None]:
    async with nothing_left_behind():
        yield


async def opened(url: str, prefix: str, **settings: Any) -> Engine:
    made = connect(f"{url}?topic_prefix={prefix}&group_id={prefix}", **settings)
    assert isinstance(made, Engine)
    return await made.__aenter__()


async def leader_of(backend: KafkaBackend, topic: str, cluster: Cluster) -> Broker:
    """Of its first partition."""
    with backend.admin.clients.kept():
        found = await asyncio.to_thread(backend.admin.clients.client.list_topics, topic, timeout=10)
    node = found.topics[topic].partitions[0].leader
    return next(broker for broker in cluster.brokers if broker.node == node)


async def controller_of(backend: KafkaBackend, cluster: Cluster) -> Broker:
    with backend.admin.clients.kept():
        answer = await asyncio.wrap_future(backend.admin.clients.client.describe_cluster(request_timeout=10))
    return next(broker for broker in cluster.brokers if broker.node == answer.controller.id)


def backend_of(protocol: Engine) -> KafkaBackend:
    assert isinstance(protocol.backend, KafkaBackend)
    return protocol.backend


@pytest.mark.parametrize("fault", ["leader", "controller", "frozen"] if SOAK else ["leader"])
async def test_a_broker_that_fails_costs_no_confirmed_message(cluster: Cluster, fault: str) -> None:
    prefix = f"f{uuid4().hex[:8]}"
    settings = {"kafka.replication_factor": 3}
    sender, member = await opened(cluster.url, prefix, **settings), await opened(cluster.url, prefix, **settings)
    backend = backend_of(sender)
    assert not (await sender.health()).warnings

    async def kill(broker: Broker) -> None:
        await asyncio.to_thread(broker.kill)
        await asyncio.sleep(1.0)  # what is tested is that it is away
        broker.launch()
        await asyncio.to_thread(broker.ready)

    async def trouble() -> None:
        if fault == "controller":
            await kill(await controller_of(backend, cluster))
            return
        broker = await leader_of(backend, backend.names.topic("load"), cluster)
        if fault == "leader":
            await kill(broker)
            return
        broker.freeze()
        try:
            await asyncio.sleep(5.0)  # longer than the brokers wait for each other
        finally:
            broker.thaw()

    try:
        load, seen = await survive(sender, member, trouble, times=count(1, 10))
        assert seen.total >= load.total > 100
    finally:
        await sender.close()
        await member.close()


async def test_a_cut_and_a_slow_link_lose_nothing(tmp_path: Path) -> None:
    open_port, controller = free_port(), free_port()
    async with Proxy(open_port) as proxy:
        more = [f"advertised.listeners=PLAINTEXT://127.0.0.1:{proxy.port}"]
        broker = Broker(tmp_path / "broker", ports={1: (open_port, controller)}, more=more)
        broker.launch()
        await asyncio.to_thread(broker.ready)
        prefix = f"l{uuid4().hex[:8]}"
        url = f"kafka://127.0.0.1:{proxy.port}"
        sender, member = await opened(url, prefix), await opened(url, prefix)
        turn = 0

        async def trouble() -> None:
            nonlocal turn
            turn += 1
            if turn % 3 == 1:
                await proxy.cut()
            elif turn % 3 == 2:
                await proxy.slow(latency_s=0.05, bytes_per_s=500_000)
                await asyncio.sleep(1.0)  # what is tested is that it lasts
                await proxy.resume()
            else:
                await proxy.stall()
                await asyncio.sleep(2.0)  # what is tested is that it lasts
                await proxy.cut()
                await proxy.resume()

        try:
            load, seen = await survive(sender, member, trouble, times=count(3, 30))
            assert seen.total >= load.total > 100
        finally:
            await sender.close()
            await member.close()
            broker.kill()


async def test_a_message_that_the_broker_finds_too_large_is_refused_with_what_to_do(cluster: Cluster) -> None:
    protocol = await opened(cluster.url, f"b{uuid4().hex[:8]}")
    try:
        await send_numbered(protocol, "big", 1)
        admin = AdminClient({"bootstrap.servers": ",".join(broker.address for broker in cluster.brokers)})
        smaller = ConfigEntry("max.message.bytes", "20000", incremental_operation=AlterConfigOpType.SET)
        topic = backend_of(protocol).names.topic("big")
        resource = ConfigResource(ResourceType.TOPIC, topic, incremental_configs=[smaller])
        for done in admin.incremental_alter_configs([resource]).values():
            await asyncio.wrap_future(done)

        told: list[str] = []

        async def is_refused() -> bool:  # each broker learns of it in its own time
            try:
                await protocol.send(task("big", 2, metadata={"pad": os.urandom(40_000).hex()}))
            except ConnectionLost:
                raise
            except BackendError as error:
                told.append(str(error))
                return True
            return False

        await until_true(is_refused, "it is refused")
        assert "max.message.bytes" in told[0]
        await protocol.send(task("big", 3))
    finally:
        await protocol.close()


def has_room_for(cluster: Cluster, topic: str) -> bool:
    """A broker that has not heard yet that a topic is deleted confirms what is sent to it, which goes with it."""
    return any(any((broker.folder / "data").glob(f"{topic}-[0-9]")) for broker in cluster.brokers)


async def test_a_topic_that_is_deleted_is_made_anew_by_the_next_send(cluster: Cluster) -> None:
    """Of an agent whose partitions are owned, and of one whose messages are claimed: what was finished in the old one
    does not pass for finished in the new one."""
    protocol = await opened(cluster.url, f"d{uuid4().hex[:8]}")
    backend = backend_of(protocol)

    async def comes_back(agent: str) -> None:
        await send_numbered(protocol, agent, 3)
        await take(protocol, agent, 3)
        await empty(protocol, agent)
        topic = backend.names.topic(agent)
        for done in backend.admin.clients.client.delete_topics([topic]).values():
            await asyncio.wrap_future(done)
        await until(lambda: not has_room_for(cluster, topic), "each broker has heard of it", 45)

        async def is_sent() -> bool:
            try:
                await protocol.send(task(agent, 4), timeout_s=5)
            except ConnectionLost:
                return False
            return True

        await until_true(is_sent, "it is sent all the same", 45)
        (again,) = await take(protocol, agent, 1, within_s=30)
        assert again.message.content["n"] == 4
        await empty(protocol, agent)

    try:
        await protocol.subscribe("pool", mode="competing")
        with backend.admin.clients.kept():
            await asyncio.gather(comes_back("gone"), comes_back("pool"))
    finally:
        await protocol.close()


@pytest.mark.parametrize("victim", ["minority", "majority"] if SOAK else ["majority"])
async def test_without_enough_copies_a_send_is_not_confirmed(cluster: Cluster, victim: str) -> None:
    """With one of three brokers away all goes on; with two away nothing is confirmed, and all goes on when they are
    back."""
    prefix = f"m{uuid4().hex[:8]}"
    protocol = await opened(cluster.url, prefix, **{"kafka.replication_factor": 3})
    try:
        await send_numbered(protocol, "few", 5)
        away = cluster.brokers[1 : 2 if victim == "minority" else 3]
        for broker in away:
            await asyncio.to_thread(broker.kill)
        try:
            if victim == "minority":
                await send_numbered(protocol, "few", 5)
            else:
                with pytest.raises(BackendError):
                    await protocol.send(task("few", 99), timeout_s=3)
        finally:
            for broker in away:
                broker.launch()
            for broker in away:
                await asyncio.to_thread(broker.ready)
        wanted = 10 if victim == "minority" else 5
        taken = await take(protocol, "few", wanted, within_s=60)
        assert len({delivery.message.id for delivery in taken}) >= wanted
    finally:
        await protocol.close()
