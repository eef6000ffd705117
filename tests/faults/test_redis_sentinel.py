"""A master that sentinels watch: it is killed or frozen under load, and the same objects go on with the new one."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from hivewire.engine.protocol import Engine
from hivewire.errors import BackendError, ConnectionLost, TimedOut
from hivewire.factory import connect
from hivewire.testing.conformance.scenario import empty, nothing_for, number, serving, take, task
from hivewire.testing.conformance.waiting import count, until
from hivewire.testing.leaks import Census, no_unhandled_errors
from hivewire.testing.redis_groups import RedisWatched, say
from hivewire.testing.servers import RedisServer, free_port
from tests.conformance.backends import start
from tests.faults.load import Load, Seen

SETTINGS: dict[str, Any] = {"lease_s": 2.0, "retry_first_s": 0.05, "retry_most_s": 1.0}


@asynccontextmanager
async def watched(folder: Path, **how: int) -> AsyncIterator[RedisWatched]:
    made = RedisWatched(folder, **how)
    before = Census.take()
    try:
        start(made)
        with no_unhandled_errors():
            yield made
        await before.check()
    finally:
        made.kill()


def master_of(group: RedisWatched) -> RedisServer:
    """As the sentinels say."""
    _, port = say(group.sentinels[0], "SENTINEL", "GET-MASTER-ADDR-BY-NAME", group.NAME)
    return next(server for server in group.servers if server.port == int(port))


def role(server: RedisServer) -> str:
    try:
        return str(say(server, "ROLE")[0])
    except OSError:
        return ""  # who becomes a replica hangs up


async def promoted(group: RedisWatched, old: RedisServer) -> None:
    def done() -> bool:
        new = master_of(group)
        return new is not old and role(new) == "master"

    await until(done, "a replica is promoted", 30)


async def _killed(server: RedisServer) -> None:
    server.kill()


async def _frozen(server: RedisServer) -> None:
    server.freeze()


@pytest.mark.processes
@pytest.mark.slow
@pytest.mark.timeout(240)
@pytest.mark.parametrize("trouble", [_killed, _frozen], ids=["kill -9", "SIGSTOP"])
@pytest.mark.parametrize("wait_replicas", [0, 1])
async def test_the_same_objects_go_on_with_the_new_master(tmp_path: Path, trouble: Any, wait_replicas: int) -> None:
    """Two replicas: when one is the master, there is one that can confirm."""
    async with watched(tmp_path, replicas=2) as group, AsyncExitStack() as stack:
        redis = {"wait_replicas": wait_replicas, "read_timeout_s": 1.0}
        sender = await stack.enter_async_context(connect(group.url, **SETTINGS, redis=redis))
        receiver = await stack.enter_async_context(connect(group.url, **SETTINGS, redis={"read_timeout_s": 1.0}))
        assert isinstance(sender, Engine)
        load, seen = Load(sender, "watched"), Seen()
        async with serving(receiver, "watched", seen, concurrency=8):
            async with load.running():
                for _ in range(count(1, 5)):
                    await _go_on(load, seen)
                    old = master_of(group)
                    await trouble(old)
                    await promoted(group, old)
                    await _go_on(load, seen)
                    if old.pid is None:
                        old.start()
                    else:
                        old.thaw()
                    await until(lambda old=old: role(old) == "slave", "the old one follows", 90)  # type: ignore[misc]
                    await _go_on(load, seen)
            await empty(sender, "watched")
        lost = seen.lost(load)
        print(f"confirmed {load.total}, lost {len(lost)}")
        assert not lost or not wait_replicas


async def _go_on(load: Load, seen: Seen) -> None:
    sent, handled = load.total, seen.total
    await until(lambda: load.total > sent + 100 and seen.total > handled + 100, "messages are sent and handled", 20)


@pytest.mark.processes
@pytest.mark.slow
async def test_what_no_replica_has_is_lost_and_wait_does_not_confirm_it(tmp_path: Path) -> None:
    """The limit of asynchronous replication, and what `wait_replicas` is for."""
    async with watched(tmp_path, replicas=1) as group, connect(group.url, **SETTINGS) as plain:
        firm_settings = {"wait_replicas": 1, "wait_timeout_s": 0.1}
        async with connect(group.url, **SETTINGS, redis=firm_settings) as firm:
            await firm.send(task("behind", 1))
            await take(plain, "behind", 1)
            await firm.send(task("other", 0))  # one stream of changes: with this the replica has what was settled, too
            (replica,) = group.replicas
            replica.kill()
            await plain.send(task("behind", 2))  # confirmed by the master alone
            with pytest.raises((ConnectionLost, TimedOut), match=r"NOREPLICAS|not stored"):
                await firm.send(task("behind", 3), timeout_s=1)
            group.master.kill()
            replica.start()
            await promoted(group, group.master)
            await nothing_for(plain, "behind")


@pytest.mark.processes
async def test_a_master_that_stands_still_is_left_as_soon_as_it_is_replaced(tmp_path: Path) -> None:
    """Not when its answer is overdue: once it goes on, it confirms what will be lost, until a sentinel reaches it."""
    async with watched(tmp_path) as group, connect(group.url, redis={"read_timeout_s": 60}) as protocol:
        await protocol.send(task("still", 0))
        await take(protocol, "still", 1)
        old = master_of(group)
        old.freeze()
        try:
            await protocol.send(task("still", 1), timeout_s=40)
            assert master_of(group) is not old
        finally:
            old.thaw()
        await protocol.send(task("still", 2))
        assert sorted(map(number, await take(protocol, "still", 2))) == [1, 2]


async def test_the_first_sentinel_may_be_away(tmp_path: Path) -> None:
    async with watched(tmp_path) as group:
        group.sentinels[0].kill()
        async with connect(group.url) as protocol:
            await protocol.send(task("x", 1))
            await take(protocol, "x", 1)


async def test_no_such_master_is_one_sentence(tmp_path: Path) -> None:
    async with watched(tmp_path) as group:
        url = group.url.replace(f"={group.NAME}", "=other")
        with pytest.raises(BackendError, match=r"knows no master 'other'.*check redis") as caught:
            await connect(url).send(task("x", 1))
        assert not caught.value.retryable
        with pytest.raises(BackendError, match="find the master"):  # a server that is no sentinel
            await connect(f"{group.master.url}?sentinel_master=hive").send(task("x", 1))
    with pytest.raises(ConnectionLost, match="find the master 'hive'"):
        await connect(f"redis://127.0.0.1:{free_port()}?sentinel_master=hive").send(task("x", 1))


async def test_sentinels_may_ask_for_a_password_of_their_own(tmp_path: Path) -> None:
    async with watched(tmp_path) as group:
        for sentinel in group.sentinels:
            say(sentinel, "ACL", "SETUSER", "default", "resetpass", ">watch")
        with pytest.raises(BackendError, match="NOAUTH"):
            await connect(group.url).send(task("x", 1))
        async with connect(group.url, redis={"sentinel_password": "watch"}) as protocol:
            await protocol.send(task("x", 1))
            await take(protocol, "x", 1)
