"""What the reports of the client mean, without a broker."""

from __future__ import annotations

import msgspec

from hivewire.backends.kafka.sending import Item, Sending
from hivewire.errors import ConnectionLost


class Reported(msgspec.Struct):
    """As much of the client's message as is looked at."""

    at: int | None

    def offset(self) -> int | None:
        return self.at


async def told(at: int | None, *, is_idempotent: bool) -> dict[int, Exception]:
    sending = Sending({"bootstrap.servers": "127.0.0.1:1", "enable.idempotence": is_idempotent})
    item = Item("topic", "id", 0, 0, b"key", b"value", None)
    item.sending = sending
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
