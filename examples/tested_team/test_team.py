"""The team's tests: quick ones in memory, one that skips an hour, one on a bad line, one on a real file."""

import asyncio

import pytest
import team

import hivewire as hw
from hivewire.testing.kit import running
from hivewire.testing.virtual_time import virtual


def order(item: str, count: int = 1, **fields) -> hw.Message:
    return hw.Message(type="order", sender="customer", to="shop", content={"item": item, "count": count}, **fields)


@pytest.mark.asyncio
async def test_a_bill_is_sent(hive):
    async with running(team.shop, team.till, protocol=hive) as kit:
        await hive.send(order("apple", 2))
        await kit.drained("shop", "till")
        assert [message.content for message in await kit.received("customer")] == [{"total": 6}]


@pytest.mark.asyncio
async def test_an_unknown_item_is_a_dead_letter(hive):
    async with running(team.shop, team.till, protocol=hive) as kit:
        await hive.send(order("stone"))
        await kit.drained("shop")
        (letter,) = await kit.dead("shop")
    assert (letter.reason, letter.error) == ("rejected", "no stone here")


@virtual
async def test_the_reminder_comes_an_hour_later():  # in no time at all
    async with running(team.shop, team.till) as kit:
        await kit.protocol.send(order("pear"))
        await kit.drained("shop", "till")
        assert [message.type for message in await kit.received("customer")] == ["bill"]
        await asyncio.sleep(3590)
        assert await kit.received("customer") == []
        await asyncio.sleep(10)
        assert [message.type for message in await kit.received("customer")] == ["reminder"]


@pytest.mark.asyncio
async def test_on_a_bad_line_each_order_has_one_bill(faulty_hive):
    async with running(team.shop, team.till, protocol=faulty_hive) as kit:
        for n in range(20):
            await faulty_hive.send(order("apple", n + 1, key=str(n)))
        await kit.drained("shop", "till")
        bills = [message.content["total"] for message in await kit.received("customer")]
    assert sorted(bills) == [3 * (n + 1) for n in range(20)]


@pytest.mark.asyncio
async def test_the_same_on_a_file(sqlite_hive):
    async with running(team.shop, team.till, protocol=sqlite_hive) as kit:
        await sqlite_hive.send(order("pear", 3))
        await kit.drained("shop", "till")
        assert [message.content for message in await kit.received("customer")] == [{"total": 12}]
