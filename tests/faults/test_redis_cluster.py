"""A real cluster under load: slots that move, masters that are killed or frozen. Nothing hangs, order holds, and what
the servers kept is delivered."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from hivewire.backends.redis.keys import CATALOGUE, base
from hivewire.backends.redis.slots import slot_of
from hivewire.delivery import Delivery
from hivewire.engine.protocol import Engine
from hivewire.errors import BackendError, SettingsError
from hivewire.factory import connect
from hivewire.testing.conformance.scenario import counts, empty, one_letter, serving, take, task
from hivewire.testing.conformance.waiting import count, eventually, until, until_true
from hivewire.testing.leaks import nothing_left_behind
from hivewire.testing.redis_groups import RedisCluster, say
from hivewire.testing.servers import RedisServer, valkey_program
from tests.conformance.backends import start
from tests.faults.load import Load, Seen

SETTINGS: dict[str, Any] = {"lease_s": 2.0, "retry_first_s": 0.05, "retry_most_s": 1.0}


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisCluster]:
    made = RedisCluster(tmp_path_factory.mktemp("cluster"))
    try:
        start(made)
        yield made
    finally:
        made.kill()


@pytest.fixture(autouse=True)
async def tidy(cluster: RedisCluster) -> AsyncIterator[None]:
    async with nothing_left_behind():
        yield
    for server in cluster.servers:
        if server.pid is None:
            server.start()
    await until(lambda: all(map(cluster.is_well, cluster.servers)), "the cluster is well again", 30)


def agents_on(cluster: RedisCluster, server: RedisServer, test: str, how_many: int = 1) -> list[str]:
    """Names of queues that live there."""
    names = (f"{test}-{n}" for n in range(1000))
    return [name for name in names if cluster.owner(slot_of(base(name))) is server][:how_many]


def masters(cluster: RedisCluster) -> list[RedisServer]:
    return list(dict.fromkeys(cluster.owner(slot) for slot in (0, 8000, 16000)))


class Patient(Seen):
    """Of one key it handles a message for longer than a lease."""

    def __init__(self) -> None:
        super().__init__()
        self.begun = 0

    async def __call__(self, delivery: Delivery) -> None:
        if delivery.message.key != "long":
            await super().__call__(delivery)
            return
        self.begun += 1
        await asyncio.sleep(2 * SETTINGS["lease_s"])


@asynccontextmanager
async def under_load(
    cluster: RedisCluster,
    agents: list[str],
    *,
    at_once: int = 1,
    pause_s: float = 0.001,
    members: int = 1,
    **settings: Any,
) -> AsyncIterator[dict[str, tuple[Load, Patient]]]:
    """Each agent has its senders in one process and its handlers in another one's objects."""
    async with AsyncExitStack() as stack:
        sender = await stack.enter_async_context(connect(cluster.url, **SETTINGS, **settings))
        receivers = [await stack.enter_async_context(connect(cluster.url, **SETTINGS)) for _ in range(members)]
        assert isinstance(sender, Engine)
        loads = {agent: (Load(sender, agent, at_once, pause_s), Patient()) for agent in agents}
        for agent, (load, seen) in loads.items():
            for receiver in receivers:
                await stack.enter_async_context(serving(receiver, agent, seen, concurrency=8))
            await stack.enter_async_context(load.running())
        yield loads


async def goes_on(loads: Mapping[str, tuple[Load, Seen]], more: int = 100, within_s: float = 20) -> None:
    """All senders and all handlers."""
    before = {agent: (load.total, seen.total) for agent, (load, seen) in loads.items()}
    await until(
        lambda: all(
            load.total > before[agent][0] + more and seen.total > before[agent][1] + more
            for agent, (load, seen) in loads.items()
        ),
        "messages are sent and handled",
        within_s,
    )


async def test_queues_spread_over_the_nodes_and_work(cluster: RedisCluster) -> None:
    async with connect(cluster.url, **SETTINGS) as protocol:
        agents = [f"spread-{n}" for n in range(12)]
        for agent in agents:
            await protocol.send(task(agent, 1))
            await protocol.send(task(agent, 2), delay_s=0.05)
        for agent in agents:
            await take(protocol, agent, 2)
            await empty(protocol, agent)
        health = await protocol.health()
        assert health.ok
        assert len({cluster.owner(slot_of(base(agent))).port for agent in agents}) == 3
        assert set(agents) <= set(await protocol.agents())


async def test_one_address_is_enough_when_the_setting_says_so(cluster: RedisCluster) -> None:
    one = f"redis://127.0.0.1:{cluster.servers[0].port}"
    async with connect(f"{one}?cluster=true") as protocol:
        for n in range(6):
            await protocol.send(task(f"one-{n}", n))
            await take(protocol, f"one-{n}", 1)
    with pytest.raises(BackendError, match="node of a cluster; set redis"):
        await connect(one).send(task("one", 1))


async def test_a_lone_server_is_no_cluster(tmp_path: Path) -> None:
    server = RedisServer(tmp_path / "lone")
    start(server)
    try:
        with pytest.raises(BackendError, match="no node of a cluster: give one address"):
            await connect(f"{server.url}?cluster=true").send(task("x", 1))
    finally:
        server.kill()


def test_a_cluster_has_one_database() -> None:
    with pytest.raises(SettingsError, match=r"redis\.db"):
        connect("redis://a:1,b:2/3")


@pytest.mark.processes
@pytest.mark.slow
@pytest.mark.timeout(120)
@pytest.mark.parametrize(("at_once", "pause_s"), [(1, 0.02), (10, 0.05)])
async def test_a_slot_moves_under_load(cluster: RedisCluster, at_once: int, pause_s: float) -> None:
    """There and back, key by key, more than once; with many messages of one key under way, plain ones beside others,
    and slower than a lease lasts."""
    source, target, _ = masters(cluster)
    (agent,) = agents_on(cluster, source, f"moves-{at_once}")
    (other,) = agents_on(cluster, target, f"stays-{at_once}")
    slot = slot_of(base(agent))
    async with under_load(cluster, [agent, other], at_once=at_once) as loads:
        await goes_on(loads)
        for to in (target, source) * count(1, 10):
            moved = await asyncio.to_thread(cluster.move, slot, to, pause_s)
            assert moved > 5
            await goes_on(loads)
    await _all_is_there(cluster, loads, may_lose=False)
    _nothing_twice(loads)


@pytest.mark.processes
@pytest.mark.slow
@pytest.mark.timeout(120)
async def test_a_slot_is_left_half_moved(cluster: RedisCluster) -> None:
    """For longer than the lease. What is sent is stored where its key is; no script can tell a key that is away from
    one that never was, so nothing is settled, nobody loses a lease, and nothing is handled again. When the slot has
    moved the queue goes on, in order. Queues that live elsewhere notice nothing."""
    source, target, _ = masters(cluster)
    (agent,) = agents_on(cluster, source, "half")
    (other,) = agents_on(cluster, target, "whole")
    slot = slot_of(base(agent))
    async with under_load(cluster, [agent, other], members=2, pause_s=0.02) as loads:
        await goes_on(loads)
        async with connect(cluster.url, **SETTINGS) as impatient:
            await impatient.send(task(agent, -1, key="long"))
            await until(lambda: loads[agent][1].begun, "its handler runs")
            assert await asyncio.to_thread(cluster.begin_to_move, slot, target, 4) == 4
            with pytest.raises(BackendError, match=r"its slot moves to another node|on the way to another node"):
                await impatient.send(task(agent, -1, key="impatient"), delay_s=0.1, timeout_s=1.0)
        async with connect(cluster.url, **SETTINGS, redis={"dial_timeout_s": 0.5}) as newcomer:
            assert await newcomer.receive(agent, limit=1, wait_s=0.1) == []
        await goes_on({other: loads[other]}, more=300)
        sent = loads[agent][0].total
        await asyncio.sleep(1.5 * SETTINGS["lease_s"])  # what is tested is that time passes
        assert loads[agent][0].total > sent + 100
        assert await asyncio.to_thread(cluster.move, slot, target) > 0
        await goes_on(loads)
        assert loads[agent][1].begun == 1
    await _all_is_there(cluster, loads, may_lose=False)
    _nothing_twice(loads)


@pytest.mark.processes
@pytest.mark.slow
async def test_a_slot_works_when_all_its_keys_have_moved(cluster: RedisCluster) -> None:
    """Whoever moves it need not say so yet."""
    source, target, _ = masters(cluster)
    (agent,) = agents_on(cluster, source, "all-moved")
    slot = slot_of(base(agent))
    async with under_load(cluster, [agent]) as loads, connect(cluster.url, **SETTINGS) as late:
        await goes_on(loads)
        assert await asyncio.to_thread(cluster.begin_to_move, slot, target, sys.maxsize) > 5
        await goes_on(loads)
        await late.send(task(agent, -1, key="k0"), idempotency_key="once")
        assert (await late.send(task(agent, -1, key="k0"), idempotency_key="once")).duplicate
        assert (await late.depth(agent)).ready >= 0
        sent = loads[agent][0].total
        await asyncio.sleep(1.5 * SETTINGS["lease_s"])  # what is tested is that time passes
        await goes_on(loads)
        assert loads[agent][0].total > sent + 200
        await asyncio.to_thread(cluster.move, slot, target)
        await goes_on(loads)
    loads[agent][1].numbers["k0"].remove(-1)
    await _all_is_there(cluster, loads, may_lose=False)
    _nothing_twice(loads)


@pytest.mark.processes
@pytest.mark.slow
async def test_a_slot_moves_at_once_on_valkey(tmp_path: Path) -> None:
    made = RedisCluster(tmp_path / "valkey", replicas=False, program=valkey_program)
    try:
        start(made)
        source, target, _ = made.servers
        (agent,) = agents_on(made, source, "jumps")
        async with under_load(made, [agent]) as loads:
            await goes_on(loads)
            for to in (target, source) * count(2, 10):
                await asyncio.to_thread(made.move_at_once, slot_of(base(agent)), to)
                await goes_on(loads)
        await _all_is_there(made, loads, may_lose=False)
    finally:
        made.kill()


@pytest.mark.processes
@pytest.mark.slow
@pytest.mark.timeout(120)
@pytest.mark.parametrize("wait_replicas", [0, 1])
async def test_a_master_is_killed_and_its_replica_takes_over(cluster: RedisCluster, wait_replicas: int) -> None:
    """What one replica had confirmed is not lost; without `WAIT` no more than what was on its way to it."""
    for _ in range(count(1, 10)):
        victim = masters(cluster)[0]
        agents = agents_on(cluster, victim, f"killed-{wait_replicas}", 2)
        agents += agents_on(cluster, masters(cluster)[1], f"spared-{wait_replicas}")
        async with under_load(cluster, agents, redis={"wait_replicas": wait_replicas}) as loads:
            await goes_on(loads)
            victim.kill()
            await until_true(partial(_elsewhere, cluster, victim, agents[0]), "a replica is promoted", 30)
            if wait_replicas:
                victim.start()  # the only one that can be a replica now
            await goes_on(loads)
        await _all_is_there(cluster, loads, may_lose=not wait_replicas)
        if victim.pid is None:
            victim.start()
        await until(lambda: all(map(cluster.is_well, cluster.servers)), "the old master follows", 30)


@pytest.mark.processes
@pytest.mark.slow
@pytest.mark.timeout(120)
@pytest.mark.parametrize("wait_replicas", [0, 1])
async def test_a_master_is_frozen_and_thawed_after_its_replica_took_over(
    cluster: RedisCluster, wait_replicas: int
) -> None:
    """What it takes in the moment when it wakes up is confirmed by no replica."""
    victim = masters(cluster)[0]
    agents = agents_on(cluster, victim, f"frozen-{wait_replicas}", 2)
    settings = {"wait_replicas": wait_replicas, "read_timeout_s": 1.0}
    async with under_load(cluster, agents, redis=settings) as loads:
        await goes_on(loads)
        victim.freeze()
        try:
            await until_true(partial(_elsewhere, cluster, victim, agents[0]), "a replica is promoted", 30)
            if not wait_replicas:
                await goes_on(loads)
        finally:
            victim.thaw()
        await until(lambda: say(victim, "ROLE")[0] == "slave", "the old master follows", 30)
        await goes_on(loads)
    await _all_is_there(cluster, loads, may_lose=not wait_replicas)


@pytest.mark.processes
async def test_what_is_confirmed_is_in_the_lists_of_another_node(cluster: RedisCluster) -> None:
    """Who looks at all queues finds it there: what expires, dead letters, agents."""
    lists = cluster.owner(slot_of(CATALOGUE))
    other = next(server for server in masters(cluster) if server is not lists)
    (agent,) = agents_on(cluster, other, "listed")
    message = task(agent, 1, ttl_s=1.0)
    async with connect(cluster.url) as protocol:
        await protocol.health()
        say(lists, "CONFIG", "SET", "maxmemory", "1")
        try:
            with pytest.raises(BackendError):
                await protocol.send(message, timeout_s=0.5)
        finally:
            say(lists, "CONFIG", "SET", "maxmemory", "0")
        await protocol.send(message)
        assert agent in await protocol.agents()
    async with connect(cluster.url):  # upkeep of another process, that does not know the agent
        await until(lambda: say(other, "HLEN", f"{base(agent)}dead") == 1, "it is buried")


@pytest.mark.slow
@pytest.mark.timeout(120)
async def test_a_node_that_stands_still_costs_no_lease_of_queues_that_live_elsewhere(cluster: RedisCluster) -> None:
    """For longer than the lease, and with nobody to take over its slots. What expires elsewhere is buried, too."""
    others = [server for server in masters(cluster) if server is not cluster.owner(slot_of(CATALOGUE))]
    victim = others[0]
    for server in cluster.servers:
        if say(server, "ROLE")[0] == "slave" and say(server, "ROLE")[2] == victim.port:
            server.kill()
    (spared,) = agents_on(cluster, others[1], "apart")
    (idle,) = agents_on(cluster, others[1], "idle")
    (stuck,) = agents_on(cluster, victim, "stuck")
    starts = 0

    async def handle(delivery: Delivery) -> None:
        nonlocal starts
        starts += 1
        await asyncio.sleep(3 * SETTINGS["lease_s"])

    async with connect(cluster.url, **SETTINGS, redis={"read_timeout_s": 1.0}) as protocol:
        async with serving(protocol, stuck, Seen()), serving(protocol, spared, handle):
            await protocol.send(task(stuck, 1, key="k0"))
            await protocol.send(task(spared, 1))
            await until(lambda: starts, "its handler runs")
            await protocol.send(task(idle, 1, ttl_s=0.5))
            await protocol.send(task(stuck, 2, key="k0", ttl_s=600))
            victim.freeze()
            try:
                await empty(protocol, spared)
                assert starts == 1
                assert (await one_letter(protocol, idle)).reason == "expired"
            finally:
                victim.thaw()
            await empty(protocol, stuck, within_s=30)
        assert protocol.metrics().nacked == 0


async def _all_is_there(cluster: RedisCluster, loads: Mapping[str, tuple[Load, Seen]], *, may_lose: bool) -> None:
    """The servers hold nothing any more, so what they kept was handled; `lost` they did not keep."""
    lost = 0
    async with connect(cluster.url, **SETTINGS) as protocol:
        for agent, (load, seen) in loads.items():
            async with serving(protocol, agent, seen):
                await empty(protocol, agent)
            lost += len(seen.lost(load))
    print(f"confirmed {sum(load.total for load, _ in loads.values())}, lost {lost}")
    assert may_lose or not lost


def _nothing_twice(loads: Mapping[str, tuple[Load, Seen]]) -> None:
    for _, seen in loads.values():
        for key, numbers in seen.numbers.items():
            assert len(numbers) == len(set(numbers)), key


async def _elsewhere(cluster: RedisCluster, victim: RedisServer, agent: str) -> bool:
    owner = await asyncio.to_thread(cluster.owner, slot_of(base(agent)))
    return owner is not victim


@pytest.mark.processes
@pytest.mark.slow
@pytest.mark.timeout(120)
async def test_health_is_red_while_a_part_of_the_slots_has_no_master(cluster: RedisCluster) -> None:
    async with connect(cluster.url, **SETTINGS) as protocol:

        async def ok() -> bool:
            return (await protocol.health()).ok

        assert await ok()
        masters(cluster)[2].kill()
        await eventually(ok, False, 5)
        await eventually(ok, True, 30)
        agent = "after-health"
        await protocol.send(task(agent, 1))
        await take(protocol, agent, 1)
        assert counts(await protocol.depth(agent)) == (0, 0, 0, 0)
