"""Small values that all processes share: read fresh, changed only by who has seen the last version."""

from __future__ import annotations

import asyncio

from hivewire.protocol import Protocol, Value
from hivewire.testing.conformance.fabric import Fabric
from hivewire.testing.conformance.waiting import count


async def test_a_value_is_stored_read_and_changed(fabric: Fabric) -> None:
    protocol = fabric.protocol
    assert await protocol.value("a/b") == Value(b"", 0)
    first = await protocol.set_value("a/b", b"\x00one", 0)
    assert first is not None
    assert await protocol.value("a/b") == first
    second = await protocol.set_value("a/b", b"two", first.version)
    assert second is not None
    assert (second.data, second.version > first.version) == (b"two", True)


async def test_who_has_not_seen_the_last_version_changes_nothing(fabric: Fabric) -> None:
    first = await fabric.protocol.set_value("v", b"1", 0)
    assert first is not None
    assert await fabric.protocol.set_value("v", b"2", 0) is None
    assert await fabric.protocol.set_value("v", b"2", first.version + 1) is None
    assert await fabric.protocol.value("v") == first


async def test_values_are_found_by_the_beginning_of_their_names(fabric: Fabric) -> None:
    for name in ("p/a", "p/b", "q/a"):
        assert await fabric.protocol.set_value(name, name.encode(), 0) is not None
    assert {name: value.data for name, value in (await fabric.protocol.values("p/")).items()} == {
        "p/a": b"p/a",
        "p/b": b"p/b",
    }


async def test_of_many_who_change_a_value_at_once_none_is_lost(fabric: Fabric) -> None:
    each = count(5, 50)

    async def add(protocol: Protocol) -> None:
        for _ in range(each):
            while True:
                seen = await protocol.value("sum")
                if await protocol.set_value("sum", b"%d" % (int(seen.data or b"0") + 1), seen.version) is not None:
                    break

    other = await fabric.member()
    try:
        await asyncio.gather(*(add(protocol) for protocol in (fabric.protocol, other) for _ in range(4)))
    finally:
        await other.close()
    assert (await fabric.protocol.value("sum")).data == b"%d" % (8 * each)
