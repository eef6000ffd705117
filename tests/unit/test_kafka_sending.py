"""What the reports of the client mean, without a broker."""

from __future__ import annotations

import asyncio

import msgspec

from hivewire.backends.kafka.sending import Item, Sending
from hivewire.errors import Closed, ConnectionLost
from hivewire.testing.conformance.waiting import until
from hivewire.testing.leaks import no_unhandled_errors


class Reported(msgspec.Struct):
    """As much of the client's message as is looked at."""

    at: int | None

    def offset(self) -> int | None:
        return self.at


def is_out(item: Item) -> bool:
    return item.gate is not None and item.gate.out > 0 and item not in item.gate.held


async def told(at: int | None, *, is_idempotent: bool) -> dict[int, Exception]:
    sending = Sending({"bootstrap.servers": "127.0.0.1:1", "enable.idempotence": is_idempotent})
    item = Item("topic", "id", 0, 0, b"key", b"value", None)
    try:
        parcel = sending.post([item], 60.0)
        item(None, Reported(at))  # type: ignore[arg-type]  # no message of the client's can be made here
        await parcel.done
        return parcel.problems
    finally:
        await sending.close(0.0)


async def test_a_success_with_an_offset_is_one() -> None:
    assert await told(7, is_idempotent=True) == {}


async def test_a_duplicate_that_has_no_offset_is_sent_again() -> None:
    """It was seen with a topic that had just been made: confirmed, and not in the log."""
    problems = await told(None, is_idempotent=True)
    assert isinstance(problems[0], ConnectionLost)
    assert problems[0].retryable


async def test_who_asks_for_no_acks_gets_no_offsets() -> None:
    assert await told(None, is_idempotent=False) == {}


async def test_nothing_of_a_batch_overtakes_the_first_one_that_a_partition_does_not_take() -> None:
    """Brokers take any number from a producer that is new to them: what is behind is not on its way before one was
    stored, and is sent again with it."""
    sending = Sending({"bootstrap.servers": "127.0.0.1:1", "enable.idempotence": True})
    items = [Item("topic", str(n), 0, n // 3, b"key", b"value", None) for n in range(5)]
    try:
        parcel = sending.post(items, 60.0)
        await until(lambda: all(is_out(items[n]) for n in (0, 3)), "the first of each partition is handed over")
        items[0](None, Reported(None))  # type: ignore[arg-type]
        items[3](None, Reported(7))  # type: ignore[arg-type]
        await until(lambda: items[3].is_done and is_out(items[4]), "the next one is handed over")
        items[4](None, Reported(8))  # type: ignore[arg-type]
        await parcel.done
        assert set(parcel.problems) == {0, 1, 2}
        assert all(isinstance(problem, ConnectionLost) for problem in parcel.problems.values())
    finally:
        await sending.close(0.0)


async def test_reports_that_come_together_count_in_their_order() -> None:
    """Of two calls, and one that was told that nobody knows: what is stored after a failure is alone on its way again,
    and what failed after others were stored leaves its partition unproven."""
    sending = Sending({"bootstrap.servers": "127.0.0.1:1", "enable.idempotence": True})
    try:
        first = Item("topic", "first", 0, 0, b"key", b"value", None)
        opened = sending.post([first], 60.0)
        await until(lambda: is_out(first), "it is handed over")
        first(None, Reported(1))  # type: ignore[arg-type]
        await opened.done
        items = [Item("topic", str(n), 0, 0, b"key", b"value", None) for n in range(5)]
        parcels = sending.post(items[:2], 60.0), sending.post(items[2:4], 60.0), sending.post(items[4:], 0.01)
        await until(lambda: all(map(is_out, items)), "all are handed over")
        await parcels[2].done
        assert isinstance(parcels[2].problems[0], ConnectionLost)
        for n, at in enumerate((2, 3, 4, None, 6)):
            items[n](None, Reported(at))  # type: ignore[arg-type]
        await parcels[1].done
        assert parcels[0].done.done()
        assert (parcels[0].problems, set(parcels[1].problems)) == ({}, {1})
        gate = items[0].gate
        assert gate is not None
        assert (gate.out, gate.is_proven) == (0, True)  # the last of them was stored
        again = [Item("topic", "4", 0, 0, b"key", b"value", None), Item("topic", "5", 0, 0, b"key", b"value", None)]
        known = sending.post(again[:1], 60.0)
        assert known.left == 0  # it is there, and not sent a second time
        failing = sending.post(again[1:], 60.0)
        await until(lambda: is_out(again[1]), "it is handed over")
        again[1](None, Reported(None))  # type: ignore[arg-type]
        await failing.done
        assert not gate.is_proven
        stored, failed = (Item("other", str(n), 0, 0, b"key", b"value", None) for n in range(2))
        one = sending.post([stored], 60.0)
        await until(lambda: is_out(stored), "it is handed over")
        two = sending.post([failed], 60.0)
        other = stored.gate
        assert other is not None
        other.out += 1  # as if both had been handed over
        other.held.clear()
        stored(None, Reported(1))  # type: ignore[arg-type]
        failed(None, Reported(None))  # type: ignore[arg-type]
        await asyncio.gather(one.done, two.done)
        assert (other.out, other.is_proven) == (0, False)
    finally:
        await sending.close(0.0)


async def test_who_closes_while_something_is_held_says_so() -> None:
    with no_unhandled_errors():
        sending = Sending({"bootstrap.servers": "127.0.0.1:1", "enable.idempotence": True})
        items = [Item("topic", str(n), 0, 0, b"key", b"value", None) for n in range(3)]
        parcel = sending.post(items, 60.0)
        await until(lambda: is_out(items[0]), "the first one is handed over")
        await sending.close(0.0)
        await parcel.done
        await asyncio.sleep(0.01)
    assert isinstance(parcel.problems[0], Closed)
