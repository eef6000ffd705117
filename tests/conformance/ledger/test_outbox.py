"""Outbox, inbox and relay, in a user's database of either dialect."""

from __future__ import annotations

import asyncio
import sqlite3
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, suppress
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

import hivewire as hw
from hivewire.coordination.outbox.boxes import lane_of, order_of
from hivewire.coordination.outbox.relay import OutboxDatabase
from hivewire.errors import MessageError
from hivewire.testing.conformance.waiting import until_true
from tests.conformance.ledger.users import UsersDatabase, users_database

outbox, inbox = hw.Outbox(), hw.Inbox("orders")


class Undone(Exception):
    """Ends a transaction without a commit."""


@pytest.fixture(params=["sqlite", "postgres"])
async def database(request: pytest.FixtureRequest, tmp_path: Path) -> UsersDatabase:
    url = f"sqlite:///{tmp_path}/users.db"
    if request.param == "postgres":
        url = f"{request.getfixturevalue('postgres').url}?schema=u_{uuid4().hex}"
    made = users_database(url)
    await made.prepare()
    return made


@pytest.fixture
async def protocol() -> AsyncIterator[hw.Protocol]:
    async with hw.connect("memory://") as made:
        yield made


def order(number: int, **fields: Any) -> hw.Message:
    return hw.Message(type="order", sender="shop", to="orders", content=number, **fields)


async def received(protocol: hw.Protocol, wanted: int) -> list[int]:
    """The contents, until `wanted` have come; then nothing more may come."""
    found: list[int] = []
    while len(found) < wanted:
        for delivery in await protocol.receive("orders", limit=100, wait_s=10):
            found.append(delivery.message.content)
            await delivery.ack()
    assert (await protocol.depth("orders")).ready == 0
    return found


async def put(database: UsersDatabase, connection: Any, *messages: hw.Message) -> None:
    async with database.transaction(connection):
        await outbox.put(connection, *messages)


async def test_what_is_committed_is_sent_and_what_is_undone_is_not(
    database: UsersDatabase, protocol: hw.Protocol
) -> None:
    async with database.connection() as connection, hw.Relay(protocol, database.url, poll_s=0.01):
        for number in range(20):
            try:
                async with database.transaction(connection):
                    await database.run(connection, "INSERT INTO orders (number) VALUES ($1)", number)
                    await outbox.put(connection, order(number))
                    if number % 3 == 0:
                        raise Undone
            except Undone:
                continue
        kept = [number for number in range(20) if number % 3]
        assert await received(protocol, len(kept)) == kept
        assert await database.numbers() == kept


async def test_nothing_is_sent_before_the_commit(database: UsersDatabase, protocol: hw.Protocol) -> None:
    async with database.connection() as connection, hw.Relay(protocol, database.url, poll_s=0.01) as relay:
        async with database.transaction(connection):
            await outbox.put(connection, order(1))
            await asyncio.sleep(0.1)  # ten looks of the relay; there is no event that would say "not seen"
            assert (await protocol.depth("orders")).ready == 0
        relay.soon()
        assert await received(protocol, 1) == [1]


async def test_without_a_transaction_nothing_is_put_or_taken(database: UsersDatabase) -> None:
    async with database.connection() as connection:
        with pytest.raises(hw.MessageError, match="no transaction is open"):
            await outbox.put(connection, order(1))
        with pytest.raises(hw.MessageError, match="no transaction is open"):
            await inbox.take(connection, order(1))


async def test_a_message_that_cannot_be_sent_is_refused_in_the_transaction(database: UsersDatabase) -> None:
    async with database.connection() as connection, database.transaction(connection):
        for bad in (order(1).replace(to=""), order(1).replace(content={1, 2}), order(1).replace(to="no name!")):
            with pytest.raises(hw.MessageError):
                await outbox.put(connection, order(0), bad)
        with pytest.raises(hw.TooLarge):
            await hw.Outbox(max_message_size=10).put(connection, order(1).replace(content="x" * 11))
        assert await database.run(connection, "SELECT id FROM hivewire_outbox") == []


async def test_one_id_is_one_message(database: UsersDatabase, protocol: hw.Protocol) -> None:
    async with database.connection() as connection, hw.Relay(protocol, database.url, poll_s=0.01):
        message = order(7)
        for _ in range(3):
            await put(database, connection, message)
        await put(database, connection, order(8))
        assert await received(protocol, 2) == [7, 8]


async def test_several_relays_send_each_message_once_and_each_key_in_order(
    database: UsersDatabase, protocol: hw.Protocol
) -> None:
    keys, each = 30, 20
    async with AsyncExitStack() as stack:
        connection = await stack.enter_async_context(database.connection())
        for n in range(each):
            await put(database, connection, *(order(key * 1_000 + n, key=f"k{key}") for key in range(keys)))
        for _ in range(4):
            await stack.enter_async_context(hw.Relay(protocol, database.url, poll_s=0.01))
        found = await received(protocol, keys * each)
        assert Counter(found) == Counter(key * 1_000 + n for key in range(keys) for n in range(each))
        for key in range(keys):
            assert [number % 1_000 for number in found if number // 1_000 == key] == list(range(each))


async def test_a_relay_that_died_holding_lanes_is_made_good(database: UsersDatabase, protocol: hw.Protocol) -> None:
    async with database.connection() as connection:
        await put(database, connection, *(order(n, key=f"k{n}") for n in range(40)))
    dead = hw.Relay(protocol, database.url, lease_s=1)
    await dead.database.open()
    store: Any = dead.database.store
    claim = store.write

    async def dies_after(script: Any) -> None:
        await claim(script)
        raise Undone

    store.write = dies_after
    with pytest.raises(Undone):
        await dead.send_some()
    assert (await protocol.depth("orders")).ready == 0, "it died after its claim, before it sent anything"
    await dead.database.close()
    async with hw.Relay(protocol, database.url, poll_s=0.01):
        assert sorted(await received(protocol, 40)) == list(range(40))


async def test_what_was_sent_and_not_marked_is_stored_once(database: UsersDatabase, protocol: hw.Protocol) -> None:
    """The moment between the confirmation and the mark, for each of several relays in turn."""
    async with database.connection() as connection:
        await put(database, connection, *(order(n) for n in range(10)))
        for _ in range(3):
            relay = hw.Relay(protocol, database.url)
            await relay.database.open()
            assert await relay.send_some() == 10
            await database.run(connection, "UPDATE hivewire_outbox SET settled_at = NULL")
            await relay.database.close()
    assert await received(protocol, 10) == list(range(10))


async def test_what_is_behind_one_that_is_not_sent_stays_behind_it(
    database: UsersDatabase, protocol: hw.Protocol, monkeypatch: pytest.MonkeyPatch
) -> None:
    send, away = protocol.send, {1: 2}  # the number of the message, and how often the store is away for it

    async def flaky(message: hw.Message, **options: Any) -> hw.Receipt:
        if away.get(message.content, 0) > 0:
            away[message.content] -= 1
            raise hw.ConnectionLost("away")
        return await send(message, **options)

    monkeypatch.setattr(protocol, "send", flaky)
    async with database.connection() as connection:
        await put(database, connection, *(order(n, key="k") for n in range(4)))
    relay = hw.Relay(protocol, database.url)
    await relay.database.open()
    assert await relay.send_some() == 1
    with pytest.raises(hw.ConnectionLost):
        await relay.send_some()
    assert await relay.send_some() == 3
    await relay.database.close()
    assert await received(protocol, 4) == [0, 1, 2, 3]


async def test_a_full_queue_holds_up_no_other(database: UsersDatabase) -> None:
    async with (
        hw.connect("memory://", inmemory_max_queue_size=2) as protocol,
        database.connection() as connection,
        hw.Relay(protocol, database.url, poll_s=0.01, lease_s=4),
    ):
        await protocol.subscribe("orders")
        await protocol.subscribe("full")
        full = [order(n, key=f"k{n}").replace(to="full") for n in range(4)]
        await put(database, connection, *full, order(1), order(2))
        assert await received(protocol, 2) == [1, 2]
        got: list[int] = []
        while len(got) < 4:
            for delivery in await protocol.receive("full", limit=10, wait_s=10):
                got.append(delivery.message.content)
                await delivery.ack()
        assert sorted(got) == [0, 1, 2, 3]


async def test_a_long_row_for_a_full_queue_holds_up_nothing_behind_it(database: UsersDatabase) -> None:
    """More than are looked at first, all of one key, and another recipient in their lane."""
    async with hw.connect("memory://", inmemory_max_queue_size=1) as protocol:
        full = [order(n, key="k").replace(to="full") for n in range(250)]
        others = [hw.Message(type="order", sender="shop", to=f"other{n}", content=n) for n in range(1_000)]
        other = next(each for each in others if lane_of(each) == lane_of(full[0]))
        for queue in ("full", other.to):
            await protocol.subscribe(queue)
        async with database.connection() as connection:
            await put(database, connection, *full, other)
        async with hw.Relay(protocol, database.url, poll_s=0.01):
            [found] = await protocol.receive(other.to, wait_s=30)
            assert found.message.id == other.id


async def test_queues_that_are_full_in_many_lanes_hold_up_no_other(database: UsersDatabase) -> None:
    """A relay has four lanes at once: not always the same four."""
    async with hw.connect("memory://", inmemory_max_queue_size=1) as protocol:
        by_lane = {lane_of(message): message for message in (order(n, key=f"k{n}") for n in range(100))}
        full = list(by_lane.values())[:6]
        others = [hw.Message(type="order", sender="shop", to=f"other{n}", content=n) for n in range(100)]
        other = next(each for each in others if lane_of(each) not in map(lane_of, full))
        for queue in ("orders", other.to):
            await protocol.subscribe(queue)
        await protocol.send(order(0))
        async with database.connection() as connection:
            await put(database, connection, *full, other)
        async with hw.Relay(protocol, database.url, poll_s=0.01):
            [found] = await protocol.receive(other.to, wait_s=30)
            assert found.message.id == other.id


async def test_a_row_that_is_no_message_is_refused_and_stops_nothing(
    database: UsersDatabase, protocol: hw.Protocol
) -> None:
    async with database.connection() as connection:
        await put(database, connection, *(order(n, key="k") for n in range(3)))
        await database.run(connection, "UPDATE hivewire_outbox SET body = $1 WHERE number = 2", b"no message")
        async with hw.Relay(protocol, database.url, poll_s=0.01):
            assert await received(protocol, 2) == [0, 2]
            stats = OutboxDatabase(database.url)
            try:
                await until_true(lambda: has_refused(stats, 1), "it is refused")
            finally:
                await stats.close()


async def has_refused(outbox_database: OutboxDatabase, wanted: int) -> bool:
    await outbox_database.open()
    return (await outbox_database.stats()).refused == wanted


async def test_what_the_protocol_refuses_is_kept_and_told_and_stops_nothing(database: UsersDatabase) -> None:
    async with hw.connect("memory://", max_message_size=100) as protocol, database.connection() as connection:
        await put(database, connection, order(1).replace(content="x" * 200), order(2))
        async with hw.Relay(protocol, database.url, poll_s=0.01) as relay:
            assert await received(protocol, 1) == [2]
            await until_true(lambda: _settled(relay), "settled")
            stats = await relay.database.stats()
            assert (stats.waiting, stats.sent, stats.refused) == (0, 1, 1)
            assert "100" in stats.errors[0][1]
    async with hw.connect("memory://") as protocol, hw.Relay(protocol, database.url, poll_s=0.01) as relay:
        assert await relay.database.retry() == 1
        assert await received_any(protocol) == "x" * 200


async def _settled(relay: hw.Relay) -> bool:
    return (await relay.database.stats()).waiting == 0


async def received_any(protocol: hw.Protocol) -> Any:
    while True:
        for delivery in await protocol.receive("orders", wait_s=10):
            await delivery.ack()
            return delivery.message.content


async def test_a_message_that_comes_again_is_taken_once(database: UsersDatabase) -> None:
    message = order(5)
    async with database.connection() as connection:
        for expected in (True, False, False):
            async with database.transaction(connection):
                assert await inbox.take(connection, message) is expected
        with suppress(Undone):
            async with database.transaction(connection):
                assert await inbox.take(connection, order(6, id="six"))
                raise Undone
        async with database.transaction(connection):
            assert await inbox.take(connection, order(6, id="six"))
            assert await hw.Inbox("others").take(connection, message)


async def test_the_result_of_the_first_time_comes_back(database: UsersDatabase) -> None:
    calls: list[int] = []

    async def work() -> dict[str, Any]:
        calls.append(1)
        return {"total": len(calls), "parts": [1, None, "x"]}

    message = order(5)
    async with database.connection() as connection:
        for _ in range(3):
            async with database.transaction(connection):
                assert await inbox.once(connection, message, work) == {"total": 1, "parts": [1, None, "x"]}
    assert calls == [1]


async def test_what_could_not_be_handled_is_handled_when_it_comes_again(database: UsersDatabase) -> None:
    """Also where the transaction was committed, with a note of the failure, say."""

    async def fail() -> None:
        raise Undone

    message = order(5)
    async with database.connection() as connection:
        for wrong in (fail, lambda: {1, 2}):
            async with database.transaction(connection):
                with pytest.raises((Undone, MessageError)):
                    await inbox.once(connection, message, wrong)
        async with database.transaction(connection):
            assert await inbox.once(connection, message, lambda: "done") == "done"


async def test_two_that_take_one_message_at_once(postgres: Any) -> None:
    """The second one waits for the end of the first; where that is undone, it has the message. (A SQLite file has one
    writer: there the second transaction does not begin.)"""
    database = users_database(f"{postgres.url}?schema=u_{uuid4().hex}")
    await database.prepare()
    message = order(5)
    async with database.connection() as first, database.connection() as second:
        for undone in (True, False):
            transaction = first.transaction()
            await transaction.start()
            assert await inbox.take(first, message)
            async with second.transaction():
                taking = asyncio.create_task(inbox.take(second, message))
                await until_true(lambda: _waits(first), "settled")
                assert not taking.done()
                await (transaction.rollback() if undone else transaction.commit())
                assert await taking is undone
                if undone:
                    await second.execute("DELETE FROM hivewire_inbox")


async def _waits(connection: Any) -> bool:
    return bool(await connection.fetchval("SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'"))


async def test_what_is_old_is_forgotten_and_what_waits_is_not(database: UsersDatabase, protocol: hw.Protocol) -> None:
    async with database.connection() as connection:
        await put(database, connection, order(1), order(2))
        async with database.transaction(connection):
            await inbox.take(connection, order(9))
        async with hw.Relay(protocol, database.url, poll_s=0.01, keep_s=0, handled_keep_s=0) as relay:
            await received(protocol, 2)
            await until_true(lambda: _settled(relay), "settled")
            relay._cleaned_at = -1e9  # as if a minute had gone by
            relay.soon()
            await until_true(lambda: _empty(database, connection), "settled")


async def _empty(database: UsersDatabase, connection: Any) -> bool:
    sizes = [await database.run(connection, f"SELECT 1 FROM {name}") for name in ("hivewire_outbox", "hivewire_inbox")]
    return not any(sizes)


@pytest.mark.parametrize(
    "wrong", [{"protocol": "memory://"}, {"keep_s": -1}, {"handled_keep_s": float("nan")}], ids=str
)
async def test_a_relay_that_could_not_work_is_not_made(wrong: dict[str, Any]) -> None:
    async with hw.connect("memory://") as protocol:
        (name,) = wrong
        with pytest.raises(hw.SettingsError, match=name):
            hw.Relay(**{"protocol": protocol, "database": "sqlite:///users.db", **wrong})


async def test_tables_may_be_made_by_several_at_once_and_are_missed_by_name(tmp_path: Path, postgres: Any) -> None:
    file = tmp_path / "users.db"
    sqlite3.connect(file).close()
    urls = (f"sqlite:///{file}", f"{postgres.url}?schema=u_{uuid4().hex}")
    for url in urls:
        await users_database(url).disconnect(await users_database(url).connect())
        made = [OutboxDatabase(url) for _ in range(4)]
        with pytest.raises(hw.MigrationNeeded, match="hivewire_inbox"):
            await made[0].open()
        await asyncio.gather(*(each.create() for each in made))
        await made[1].open()
        for each in made:
            await each.close()


def test_plain_functions_have_it_too(tmp_path: Path) -> None:
    connection = sqlite3.connect(tmp_path / "users.db")  # begins a transaction by itself
    outbox.blocking.create_tables(connection)
    outbox.blocking.put(connection, order(1))
    assert inbox.blocking.take(connection, order(2))
    connection.rollback()
    message = order(3)
    with pytest.raises(ZeroDivisionError):
        inbox.blocking.once(connection, message, lambda: [1 // 0])
    assert inbox.blocking.once(connection, message, lambda: [1]) == [1]
    assert inbox.blocking.once(connection, message, lambda: [2]) == [1]

    def undo() -> None:
        connection.rollback()
        raise Undone

    with pytest.raises(Undone):
        inbox.blocking.once(connection, order(4), undo)
    assert not connection.in_transaction, "others could write nothing"
    outbox.blocking.put(connection, message)
    connection.commit()
    assert [row[0] for row in connection.execute("SELECT id FROM hivewire_outbox")] == [message.id]
    connection.close()


def test_messages_of_one_key_share_a_lane() -> None:
    assert order_of(order(1).replace(to="orders/7", key="a")) == ("orders", "7")
    assert order_of(order(1)) == ("orders", "shop")
    assert lane_of(order(1, key="a")) == lane_of(order(2, key="a").replace(sender="other"))
    assert order_of(order(1, id="i", key=hw.UNORDERED)) == ("orders", "i")
