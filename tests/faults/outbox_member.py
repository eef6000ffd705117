"""A program with outbox, relay and inbox that kills itself at a given point, at the Nth time that it comes there:
`python -m tests.faults.outbox_member DATABASE PROTOCOL ORDERS POINT N`.

It takes `ORDERS` orders, sends a message for each, and handles them; every third transaction is undone first. What an
earlier process has finished is not done again.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Awaitable, Callable
from typing import Any

import hivewire as hw
from tests.conformance.ledger.users import UsersDatabase, users_database

outbox, inbox = hw.Outbox(), hw.Inbox("orders")


class Undone(Exception):
    """Ends a transaction without a commit."""


POINTS = (
    *("after the order", "after the put", "after the commit"),
    *("before the relay's write", "after the relay's write", "before the send", "after the send"),
    *("after the take", "after the row", "before the ack", "after the ack"),
)


class Steps:
    """Points at which the process may die; it dies at one of them."""

    def __init__(self, wanted: str, times: int) -> None:
        self._wanted = wanted
        self._left = times

    def point(self, name: str) -> None:
        assert name in POINTS, name
        self._left -= name == self._wanted
        if self._left == 0:
            print(name, flush=True)
            os.kill(os.getpid(), signal.SIGKILL)

    def around(self, name: str, call: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
        async def stepping(*arguments: Any, **named: Any) -> Any:
            self.point(f"before {name}")
            result = await call(*arguments, **named)
            self.point(f"after {name}")
            return result

        return stepping


async def take_orders(database: UsersDatabase, connection: Any, wanted: int, steps: Steps) -> None:
    known = set(await database.numbers())
    for number in range(wanted):
        if number in known:
            continue
        for is_undone in (True, False) if number % 3 == 0 else (False,):
            try:
                async with database.transaction(connection):
                    await database.run(connection, "INSERT INTO orders (number) VALUES ($1)", number)
                    steps.point("after the order")
                    content = -1 if is_undone else number
                    await outbox.put(connection, hw.Message(type="order", sender="shop", to="orders", content=content))
                    steps.point("after the put")
                    if is_undone:
                        raise Undone
            except Undone:
                continue
            steps.point("after the commit")


async def handle(database: UsersDatabase, connection: Any, protocol: hw.Protocol, steps: Steps, wanted: int) -> None:
    while len(await database.run(connection, "SELECT number FROM handled")) < wanted:
        for delivery in await protocol.receive("orders", limit=10, wait_s=0.2):
            async with database.transaction(connection):
                if await inbox.take(connection, delivery.message):
                    steps.point("after the take")
                    sql = "INSERT INTO handled (number) VALUES ($1)"
                    await database.run(connection, sql, delivery.message.content)
                    steps.point("after the row")
            steps.point("before the ack")
            await delivery.ack()
            steps.point("after the ack")


async def main() -> None:
    url, protocol_url, wanted, point, times = *sys.argv[1:3], int(sys.argv[3]), sys.argv[4], int(sys.argv[5])
    database, steps = users_database(url), Steps(point, times)
    async with hw.connect(protocol_url, lease_s=1) as protocol, database.connection() as connection:
        relay = hw.Relay(protocol, url, poll_s=0.01, lease_s=1)
        await take_orders(database, connection, wanted, steps)
        store: Any = relay.database.store
        store.write = steps.around("the relay's write", store.write)
        stepping: Any = protocol
        stepping.send = steps.around("the send", protocol.send)
        async with relay:
            await handle(database, connection, protocol, steps, wanted)
    print("done", flush=True)


if __name__ == "__main__":
    asyncio.run(main())
