"""Slots of a cluster, and what goes where, against nodes that are scripted."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from functools import partial
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hivewire.backends.redis import scripts, slots
from hivewire.backends.redis.address import pack
from hivewire.backends.redis.keys import EPOCH, base, bell
from hivewire.backends.redis.link import Link, good
from hivewire.backends.redis.opening import new_link
from hivewire.errors import BackendError, ConnectionLost
from hivewire.settings import RedisSettings
from hivewire.testing.conformance.waiting import until, until_true
from tests.unit.test_redis_wire import Fake, read_command


@pytest.mark.parametrize(
    ("key", "slot"),
    [("123456789", 12739), ("foo", 12182), ("bar", 5061), ("{foo}", 12182), ("a{foo}b{bar}", 12182), ("{}x", 10595)],
)
def test_slots_are_those_of_the_server(key: str, slot: int) -> None:
    """Known from `CLUSTER KEYSLOT`; empty braces count as text."""
    assert slots.slot_of(key) == slots.slot_of(key.encode()) == slot


@given(
    st.text(st.characters(codec="utf-8", exclude_characters="{}"), min_size=1), st.text(st.characters(codec="utf-8"))
)
def test_all_names_of_a_queue_are_in_one_slot(queue: str, more: str) -> None:
    wanted = slots.slot_of(base(queue))
    assert slots.slot_of(bell(queue)) == wanted
    assert slots.slot_of(base(queue) + more) == wanted


@pytest.mark.parametrize(
    ("command", "key"),
    [
        (scripts.run(scripts.DEPTH, "hivewire:{q}:"), "hivewire:{q}:"),
        (("XREAD", "COUNT", 10, "STREAMS", "s1", "s2", "0", "0"), "s1"),
        (("XREADGROUP", "GROUP", "g", "me", "STREAMS", "s1", ">"), "s1"),
        (("XGROUP", "CREATE", "s1", "g", "0"), "s1"),
        (("XADD", b"s1", "*", "a", "b"), b"s1"),
        (("MGET", "a", "b"), "a"),
        (("PUBLISH", "channel", "x"), "channel"),
        (("TIME",), None),
        (("CONFIG", "GET", "x"), None),
    ],
)
def test_the_key_of_a_command(command: Any, key: str | bytes | None) -> None:
    assert slots.key_of(command) == key


def test_views_are_read_and_the_majority_counts() -> None:
    view, nodes = slots.read_view(
        [[5461, 16383, [b"h2", 2, b"id"]], [0, 5460, [b"", 1, b"id", []], [b"?", 3, b"id"]]], ("asked", 9)
    )
    assert view == ((0, 5460, ("asked", 1)), (5461, 16383, ("h2", 2)))
    assert nodes == {("asked", 1), ("asked", 3), ("h2", 2)}
    older = ((0, 16383, ("h1", 1)),)
    assert slots.chosen([older, view, view]) == view
    assert slots.chosen([((0, 5, ("h", 1)),), older]) == older


@given(st.text())
def test_any_text_is_no_redirection_or_one(text: str) -> None:
    found = slots.redirected("MOVED", text, ("asked", 9))
    assert found is None or (0 <= found[0] < slots.COUNT and isinstance(found[1][1], int))
    assert slots.redirected("MOVED", "MOVED 3999 h:7", ("asked", 9)) == (3999, ("h", 7))
    assert slots.redirected("MOVED", "MOVED 3999 :7", ("asked", 9)) == (3999, ("asked", 7))
    assert slots.redirected("MOVED", "MOVED 3999 [::1]:7", ("asked", 9)) == (3999, ("::1", 7))


class Scripted:
    """Two nodes. `owner` says which one has all slots; each hears its commands, and answers when it may."""

    def __init__(self) -> None:
        self.nodes = [Fake(self._talk(0)), Fake(self._talk(1))]
        self.owner = 0
        self.heard: list[list[list[bytes]]] = [[], []]
        self.may_answer = [asyncio.Semaphore(1000), asyncio.Semaphore(1000)]
        self.gone: set[bytes] | None = None
        """Keys that the owner has no more, while the slot is on its way to the other one."""
        self.left = 1
        """How many keys it still has."""
        self.imports = True
        """The other one takes what comes with `ASKING`."""

    def _talk(self, number: int) -> Any:
        async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            asking = False
            while True:
                command = await read_command(reader)
                if command[:2] != [b"CLUSTER", b"SLOTS"]:
                    self.heard[number].append(command)
                    owner = self.owner
                    await self.may_answer[number].acquire()
                    writer.write(b"+OK\r\n" if asking and self.imports else self._answer(number, owner, command))
                    asking = command[0] == b"ASKING"
                    continue
                port = self.nodes[self.owner].port
                writer.write(b"*1\r\n*3\r\n:0\r\n:16383\r\n*2\r\n$9\r\n127.0.0.1\r\n:%d\r\n" % port)

        return talk

    def _answer(self, number: int, owner: int, command: list[bytes]) -> bytes:
        if command[0] in (b"PING", b"ASKING"):
            return b"+OK\r\n"
        if command[0] == b"CLUSTER":
            return b":%d\r\n" % self.left
        keys = keys_of(command)
        slot = slots.slot_of(keys[0])
        if number != owner:
            return b"-MOVED %d 127.0.0.1:%d\r\n" % (slot, self.nodes[owner].port)
        away = [key in self.gone for key in keys] if self.gone is not None else [False]
        if all(away):
            return b"-ASK %d 127.0.0.1:%d\r\n" % (slot, self.nodes[1 - number].port)
        return b"-TRYAGAIN Multiple keys request during rehashing of slot\r\n" if any(away) else b"+OK\r\n"

    @asynccontextmanager
    async def linked(self, **settings: Any) -> AsyncIterator[Link]:
        async with AsyncExitStack() as stack:
            for node in self.nodes:
                await stack.enter_async_context(node.listening())
            values = {"min_idle_conns": 0, "max_retries": 0, "cluster": True, **settings}
            link = new_link(RedisSettings(addr=f"127.0.0.1:{self.nodes[0].port}", **values))
            stack.push_async_callback(link.close)
            yield link

    def numbers(self, node: int) -> list[int]:
        return [int(command[-1]) for command in self.heard[node] if command[0] == b"XADD"]


def keys_of(command: list[bytes]) -> list[bytes]:
    if command[0] == b"EVALSHA":
        return [command[3]]
    if command[0] == b"XREAD":
        streams = command[command.index(b"STREAMS") + 1 :]
        return streams[: len(streams) // 2]
    return command[1:2]


def xadd(number: int) -> list[Any]:
    return [("XADD", "hivewire:{q}:s0", "*", "b", number)]


async def test_a_later_message_does_not_overtake_one_that_was_refused() -> None:
    """Sent to the old node, the new node is known before the last refusal: nothing goes there until all are in."""
    cluster = Scripted()
    async with cluster.linked() as link:
        assert await link.post(xadd(0)) == [b"OK"]
        cluster.owner = 1
        cluster.may_answer[0] = asyncio.Semaphore(0)
        first = link.post(xadd(1))
        second = link.post(xadd(2))
        await until(lambda: len(cluster.numbers(0)) == 2, "the first one is heard")
        cluster.may_answer[0].release()
        (said,) = await first
        with pytest.raises(ConnectionLost, match="moves to another node"):
            good(said, "send")
        (third,) = await link.post(xadd(3))  # the second one is still out
        with pytest.raises(ConnectionLost, match="on the way to another node"):
            good(third, "send")
        assert cluster.numbers(1) == []
        for _ in range(10):
            cluster.may_answer[0].release()
        with suppress(ConnectionLost):  # or it is cut off, as the node has no slots any more
            assert str((await second)[0]).startswith("MOVED")

        async def stored(number: int) -> bool:
            return not isinstance((await link.post(xadd(number)))[0], Exception)

        for number in (1, 2, 3):
            await until_true(partial(stored, number), "it is stored")
        assert cluster.numbers(1) == [1, 2, 3]


async def test_readers_begin_anew_when_their_slots_went_elsewhere() -> None:
    cluster = Scripted()
    async with cluster.linked() as link:
        returned = []
        link.on_return = lambda: returned.append(len(cluster.heard[1]))
        await link.post(xadd(0))
        cluster.owner = 1
        await link.post(xadd(1))
        await until(lambda: returned, "they are told")
        assert returned[0] == 0  # before anything is asked there


STREAM = b"hivewire:{q}:s0"
WHOLE = base("q").encode()


def script(number: int) -> list[Any]:
    return [scripts.run(scripts.ROOM, base("q"), number)]


async def test_what_the_old_node_has_no_more_is_asked_of_the_new_one_in_order() -> None:
    """Sent together, and the key goes in between."""
    cluster = Scripted()
    cluster.gone = set()
    async with cluster.linked() as link:
        await link.post(xadd(0))
        cluster.may_answer[0] = asyncio.Semaphore(0)
        posted = [link.post(xadd(n)) for n in range(1, 5)]
        stored = [link.store(STREAM.decode(), pack(xadd(n)[0])) for n in range(5, 8)]
        for _ in range(3):
            cluster.may_answer[0].release()
        assert [await each for each in posted[:3]] == [[b"OK"]] * 3
        cluster.gone = {STREAM}
        for _ in range(10):
            cluster.may_answer[0].release()
        assert await posted[3] == [b"OK"]
        assert [await each for each in stored if each is not None] == [None] * 3
        assert cluster.numbers(1) == [4, 5, 6, 7]
        assert await link.post([*xadd(8), ("HGET", EPOCH, "epoch")]) == [b"OK", b"OK"]
        assert cluster.numbers(1)[-1] == 8


async def test_a_script_on_a_queue_runs_where_all_of_it_is() -> None:
    """It would begin the queue anew where it found a part of its keys."""
    cluster = Scripted()
    cluster.gone = {WHOLE}
    async with cluster.linked() as link:
        for _ in range(2):
            (said,) = await link.post(script(1))
            with pytest.raises(ConnectionLost, match="its slot moves"):
                good(said, "send")
        assert cluster.heard[1] == []
        assert await link.post(xadd(1)) == [b"OK"]  # one key, and it is here
        cluster.left = 0
        assert await link.post([*script(1), *script(2)]) == [b"OK", b"OK"]
        assert [command[-1] for command in cluster.heard[1] if command[0] == b"EVALSHA"] == [b"1", b"2"]


async def test_nothing_passes_a_script_that_was_refused() -> None:
    cluster = Scripted()
    cluster.gone = {WHOLE}
    async with cluster.linked() as link:
        await link.post([("GET", "x")])
        cluster.may_answer[0] = asyncio.Semaphore(0)
        first = link.post(script(1), firm=True)
        cluster.may_answer[0].release()
        await until(lambda: cluster.heard[0][-1][0] == b"CLUSTER", "it is asked what is left")
        second = link.post(script(2), firm=True)
        cluster.may_answer[0].release()
        assert str((await first)[0]).startswith("ASK")
        cluster.left = 0
        (third,) = await link.post(script(3), firm=True)
        with pytest.raises(ConnectionLost, match="on the way to another node"):
            good(third, "send")
        for _ in range(10):
            cluster.may_answer[0].release()
        assert str((await second)[0]).startswith("ASK")
        assert cluster.heard[1] == []


async def test_what_the_new_node_refuses_is_passed_by_nothing() -> None:
    cluster = Scripted()
    cluster.gone = {STREAM}
    cluster.imports = False
    async with cluster.linked() as link:
        await link.post([("GET", "x")])
        cluster.may_answer[1] = asyncio.Semaphore(0)
        first, second = link.post(xadd(1), firm=True), link.post(xadd(2), firm=True)
        await until(lambda: len(cluster.heard[1]) > 0, "the first one is sent on")
        for _ in range(2):
            cluster.may_answer[1].release()
        assert str((await first)[0]).startswith("MOVED")
        cluster.imports = True
        (third,) = await link.post(xadd(3), firm=True)
        with pytest.raises(ConnectionLost, match="on the way to another node"):
            good(third, "send")
        for _ in range(10):
            cluster.may_answer[1].release()
        await second
        await until(lambda: not link._held, "it takes messages again")  # type: ignore[attr-defined]
        assert await link.post(xadd(1)) == [b"OK"]


@pytest.mark.parametrize("gone", [{STREAM}, {STREAM, b"hivewire:{q}:s1"}])
async def test_several_keys_are_read_each_where_it_is(gone: set[bytes]) -> None:
    cluster = Scripted()
    cluster.gone = gone
    read = ("XREAD", "COUNT", 5, "STREAMS", "hivewire:{q}:s0", "hivewire:{q}:s1", "3-0", "4-0")
    async with cluster.linked() as link:
        await link.post([read, *xadd(7)])
        assert [command for command in cluster.heard[1] if command[0] == b"XREAD"] == [
            [b"XREAD", b"COUNT", b"5", b"STREAMS", stream, cursor]
            for stream, cursor in ((STREAM, b"3-0"), (b"hivewire:{q}:s1", b"4-0"))
            if stream in gone
        ]


async def test_replicas_have_what_is_sent_on() -> None:
    cluster = Scripted()
    cluster.gone = {STREAM}
    async with cluster.linked(wait_replicas=1) as link:
        (said,) = await link.post(xadd(1), firm=True)
        assert str(said).startswith("NOREPLICAS")  # `OK` is no number of them
        assert [command[0] for command in cluster.heard[1]][:3] == [b"ASKING", b"XADD", b"WAIT"]


@pytest.mark.parametrize(
    ("command", "answers", "whole"),
    [
        (("MGET", "a", "b"), [[b"1"], [None]], [b"1", None]),
        (("XREAD", "STREAMS", "a", "b", "0", "0"), [[[b"a", []]], None], [[b"a", []]]),
        (("XREAD", "STREAMS", "a", "b", "0", "0"), [None, None], None),
    ],
)
def test_answers_of_parts_make_one(command: Any, answers: list[Any], whole: Any) -> None:
    assert len(slots.parts_of(command)) == 2
    assert slots.merged(command, answers) == whole
    error = ValueError("x")
    assert slots.merged(command, [answers[0], error]) is error


@pytest.mark.parametrize(
    "command",
    [("MGET", "a"), ("XREAD", "STREAMS", "a", "0"), ("XREAD", "BLOCK", 1, "STREAMS", "a", "b", "0", "0"), ("GET", "a")],
)
def test_what_has_no_parts(command: Any) -> None:
    assert not slots.parts_of(command)


async def test_a_node_that_dies_is_left_when_another_has_its_slots() -> None:
    cluster = Scripted()
    async with cluster.linked(dial_timeout_s=0.5) as link:
        await link.post(xadd(0))
        cluster.may_answer[0] = asyncio.Semaphore(0)
        stuck = link.post(xadd(1))
        cluster.owner = 1
        link.cut("the test wants a look around")
        with pytest.raises(ConnectionLost):
            await stuck

        async def goes() -> bool:
            try:
                return not isinstance((await link.post(xadd(2)))[0], Exception)
            except ConnectionLost:
                return False

        await until_true(goes, "it goes to the other node", 5)
        assert cluster.numbers(1) == [2]


async def test_answers_of_several_nodes_come_in_the_order_of_the_questions() -> None:
    cluster = Scripted()
    async with cluster.linked(pool_size=4) as link:
        commands = [("XADD", f"hivewire:{{q{n}}}:s0", n) for n in range(50)]
        assert await link.post(commands) == [b"OK"] * 50
        assert sorted(cluster.numbers(0)) == list(range(50))
        assert await link.post([]) == []
        cluster.owner = 1
        mixed = await link.post(commands)
        assert all(isinstance(each, Exception) for each in mixed)


async def test_a_node_of_a_cluster_is_no_lone_server() -> None:
    cluster = Scripted()
    cluster.owner = 1
    async with cluster.linked(cluster=False) as link:
        (said,) = await link.post(xadd(1))
        assert isinstance(said, Exception)
        with pytest.raises(BackendError, match="node of a cluster; set redis") as caught:
            await link.post(xadd(2))
        assert not caught.value.retryable


async def test_no_node_is_there() -> None:
    cluster = Scripted()
    async with cluster.linked() as link:
        pass
    settings = RedisSettings(addr="127.0.0.1:1,127.0.0.1:2", max_retries=0)
    link = new_link(settings)
    try:
        with pytest.raises(BackendError, match=r"connect to 127.0.0.1:[12]/0"):
            await link.call("GET", "x")
    finally:
        await link.close()
