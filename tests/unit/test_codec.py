"""What the codec accepts comes back equal; what it does not accept has one typed error."""

from __future__ import annotations

import inspect
import json
import sys
from collections import OrderedDict, namedtuple
from collections.abc import Callable
from datetime import UTC, datetime, timedelta, timezone
from enum import IntEnum, StrEnum
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hivewire.codec import MAX_DEPTH, check_agent, check_group, decode, encode, split_address
from hivewire.codec.names import ADDRESSES, TYPES
from hivewire.errors import MessageError, TooLarge, Undecodable
from hivewire.message import UNORDERED, Message, MessageType, Priority
from hivewire.testing.bad_messages import (
    BAD_BYTES,
    BAD_MESSAGES,
    MAX_SIZE_BYTES,
    ODD_BYTES,
    ODD_MESSAGES,
    Make,
    outcome,
)


def made(**fields: Any) -> Message:
    return Message(**{"type": "task", "sender": "me", "to": "you"} | fields)


def there_and_back(message: Message) -> Message:
    return decode(encode(message, MAX_SIZE_BYTES))


# Every message that is valid.
names = st.from_regex(r"[A-Za-z0-9._-]{1,128}", fullmatch=True).filter(
    lambda name: not name.startswith("broadcast-") and name not in (".", "..")
)
characters = st.characters(exclude_categories=["Cs"])
texts = st.text(characters, max_size=40)
labels = st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=60)
instances = labels.filter(lambda text: text[0] != "/")
addresses = names | st.builds("{}/{}".format, names, instances)
numbers = st.integers() | st.floats(allow_nan=False, allow_infinity=False)
json_values = st.recursive(
    st.none() | st.booleans() | numbers | texts,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4),
    max_leaves=12,
)
zones = st.integers(-1439, 1439).map(lambda minutes: timezone(timedelta(minutes=minutes)))
FIELDS = {"id", "type", "from", "to", "in_reply_to", "content", "metadata", "created_at"}
FIELDS |= {"key", "ttl_s", "priority", "content_encoding"}
messages = st.builds(
    Message,
    type=labels,
    sender=addresses,
    to=addresses | st.just(""),
    content=json_values | st.binary(max_size=60),
    id=st.text(characters, min_size=1, max_size=64),
    key=st.none() | labels | st.just(UNORDERED),
    in_reply_to=st.none() | labels,
    metadata=st.dictionaries(texts, json_values, max_size=3),
    created_at=st.datetimes(datetime(2, 1, 1), datetime(9998, 1, 1), timezones=zones | st.just(UTC)),  # noqa: DTZ001
    ttl_s=st.none() | st.floats(0, 2.0**53, exclude_min=True) | st.integers(1, 10**9),
    priority=st.integers(1, 10),
    extra=st.dictionaries(texts.filter(lambda name: name not in FIELDS), json_values, max_size=2),
)


@given(messages)
def test_every_valid_message_comes_back_equal(message: Message) -> None:
    assert there_and_back(message) == message


@given(messages)
def test_what_is_written_is_json_for_everybody(message: Message) -> None:
    fields = json.loads(encode(message, MAX_SIZE_BYTES))
    assert fields["from"] == message.sender
    assert fields.keys() - message.extra.keys() <= FIELDS


@given(messages, st.data())
@settings(max_examples=200)
def test_damaged_bytes_are_undecodable_or_a_message_that_can_be_written_again(message: Message, data: Any) -> None:
    body = bytearray(encode(message, MAX_SIZE_BYTES))
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(body) - 1))
        body[at : at + data.draw(st.integers(0, 4))] = data.draw(st.binary(max_size=4))
        if not body:
            break
    try:
        again = decode(bytes(body))
    except Undecodable:
        return
    assert there_and_back(again) == again


@given(st.binary(max_size=200) | st.text().map(lambda text: text.encode("utf-8", "surrogatepass")))
def test_any_bytes_are_undecodable(body: bytes) -> None:
    with pytest.raises(Undecodable):
        decode(body)


@pytest.mark.parametrize(("name", "make"), BAD_MESSAGES, ids=[name for name, _ in BAD_MESSAGES])
def test_a_bad_message_is_refused_with_its_error(name: str, make: Make) -> None:
    with pytest.raises(outcome(name)) as caught:
        encode(make(), MAX_SIZE_BYTES)
    assert len(str(caught.value)) < 500
    str(caught.value).encode()


@pytest.mark.parametrize("body", [body for _, body in BAD_BYTES], ids=[name for name, _ in BAD_BYTES])
def test_bad_bytes_are_undecodable(body: bytes) -> None:
    with pytest.raises(Undecodable) as caught:
        decode(body)
    assert len(str(caught.value)) < 500
    str(caught.value).encode()


@pytest.mark.parametrize("make", [make for _, make in ODD_MESSAGES], ids=[name for name, _ in ODD_MESSAGES])
def test_an_odd_message_is_legal_and_comes_back_equal(make: Make) -> None:
    message = make()
    assert there_and_back(message) == message


@pytest.mark.parametrize("body", [body for _, body in ODD_BYTES], ids=[name for name, _ in ODD_BYTES])
def test_odd_bytes_are_a_message(body: bytes) -> None:
    message = decode(body)
    assert there_and_back(message) == message


def test_there_are_two_hundred_bad_inputs_and_no_name_twice() -> None:
    assert len(BAD_MESSAGES) + len(BAD_BYTES) >= 200
    for entries in (BAD_MESSAGES, BAD_BYTES, ODD_MESSAGES, ODD_BYTES):
        assert len({name for name, _ in entries}) == len(entries)


def test_when_a_name_stands_twice_the_last_one_counts() -> None:
    body = b'{"id":"a","type":"t","from":"x","content":{"n":1,"n":2},"id":"b"}'
    assert (decode(body).id, decode(body).content) == ("b", {"n": 2})


def test_a_message_of_the_reference_gets_our_defaults() -> None:
    message = decode(b'{"id":"a","type":"t","from":"x"}')
    assert message == Message(id="a", type="t", sender="x", created_at=datetime(1, 1, 1, tzinfo=UTC))
    assert (message.key, message.ttl_s, message.priority, message.extra) == (None, None, 5, {})


def test_our_fields_are_left_out_when_they_say_nothing_new() -> None:
    fields = json.loads(encode(made(), 100))
    assert fields.keys().isdisjoint({"key", "ttl_s", "priority", "content_encoding", "in_reply_to"})


def test_unknown_fields_survive_a_forward_and_a_change() -> None:
    body = b'{"id":"a","type":"t","from":"x","to":"y","content":1,"tenant":"acme","hops":[1]}'
    forwarded = encode(decode(body).replace(to="z", content=b"\xff"), 100)
    assert json.loads(forwarded)["tenant"] == "acme"
    assert decode(forwarded).extra == {"tenant": "acme", "hops": [1]}
    assert decode(forwarded).content == b"\xff"


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_bytes_like_content_comes_back_as_bytes(kind: Callable[[bytes], Any]) -> None:
    for content in (b"", b"\x00", b"\xff\xfe", bytes(range(256)) * 10):
        assert there_and_back(made(content=kind(content))).content == content


def test_a_strided_memoryview_is_sent_as_its_bytes() -> None:
    assert there_and_back(made(content=memoryview(b"abcdef")[::2])).content == b"ace"


class _Status(StrEnum):
    DONE = "done"


class _Level(IntEnum):
    HIGH = 3


_Point = namedtuple("_Point", "x y")


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ((1, (2,)), [1, [2]]),
        (_Point(1, 2), [1, 2]),
        ([_Status.DONE, _Level.HIGH], ["done", 3]),
        ({_Status.DONE: 1}, {"done": 1}),
        (OrderedDict(a=1), {"a": 1}),
        ((), []),
    ],
)
def test_what_json_has_no_word_for_comes_back_as_its_nearest(given: Any, expected: Any) -> None:
    content = there_and_back(made(content=given)).content
    assert content == expected
    assert type(content) is type(expected)


def test_names_of_the_reference_and_priorities_are_plain_values_on_the_wire() -> None:
    message = there_and_back(made(type=MessageType.TASK, priority=Priority.HIGH))
    assert (type(message.type), type(message.priority)) == (str, int)
    assert (message.type, message.priority) == (MessageType.TASK, Priority.HIGH)


def test_an_empty_in_reply_to_is_none() -> None:
    assert there_and_back(made(in_reply_to="")).in_reply_to is None


def test_times_are_written_in_utc_and_rounded_to_microseconds() -> None:
    east = timezone(timedelta(hours=5, minutes=30, seconds=1))
    message = made(created_at=datetime(2026, 1, 1, 5, 30, 1, 999_999, east))
    assert json.loads(encode(message, 100))["created_at"] == "2026-01-01T00:00:00.999999Z"
    body = b'{"id":"a","type":"t","from":"x","created_at":"2026-01-01T00:00:00.0000005Z"}'
    assert decode(body).created_at.microsecond in (0, 1)


@pytest.mark.parametrize("levels", [1, 50, MAX_DEPTH])
def test_content_may_be_nested_a_hundred_deep(levels: int) -> None:
    content: Any = 1
    for level in range(levels):
        content = [content] if level % 2 else {"a": content}
    assert there_and_back(made(content=content, metadata={"x": 1})).content == content


@pytest.mark.parametrize(("opening", "inner"), [(b'{"":', b"{}"), (b"[", b"[]")])
def test_the_shortest_body_that_is_nested_too_deep_is_refused(opening: bytes, inner: bytes) -> None:
    def body(levels: int) -> bytes:
        content = opening * (levels - 1) + inner + (b"}" if inner == b"{}" else b"]") * (levels - 1)
        return b'{"id":"a","type":"t","from":"x","to":"x","metadata":{},"content":%b}' % content

    for _ in range(2):  # names that are known by then
        assert decode(body(MAX_DEPTH)).to == "x"
        with pytest.raises(Undecodable, match="nested deeper"):
            decode(body(MAX_DEPTH + 1))


def test_no_recursion_error_escapes_however_little_stack_is_left() -> None:
    content: Any = 1
    for _ in range(99):
        content = [content]
    message = made(content=content)
    body = encode(message, 10_000)
    refused = 0

    def deeper(levels: int) -> None:
        nonlocal refused
        if levels:
            return deeper(levels - 1)
        for call in (lambda: encode(message, 10_000), lambda: decode(body), lambda: decode(b"[" * 5000)):
            try:
                call()
            except Undecodable:
                refused += 1
        return None

    left = sys.getrecursionlimit() - len(inspect.stack(0)) - 30
    for levels in (*range(0, left, 50), *range(left - 30, left)):
        deeper(levels)
    assert refused > left // 50 + 30


def test_the_error_of_a_large_content_names_both_sizes() -> None:
    with pytest.raises(TooLarge, match=r"1001 bytes.* 1000"):
        encode(made(content="x" * 1001), 1000)
    with pytest.raises(TooLarge, match=r"1001 bytes.* 1000"):
        encode(made(content=b"x" * 1001), 1000)
    with pytest.raises(TooLarge, match=r"1002 bytes.* 1000"):
        encode(made(content=["x" * 998]), 1000)


@pytest.mark.parametrize("content", ["x" * 1000, b"x" * 1000, ["x" * 996], "ä" * 500, None, 0])
def test_content_of_just_the_limit_is_sent(content: Any) -> None:
    assert there_and_back(made(content=content)).content == content
    assert encode(made(content=content), 1000)


def test_what_is_no_message_is_refused() -> None:
    things: list[Any] = [None, {"id": "a"}, "text", object()]
    for thing in things:
        with pytest.raises(MessageError):
            encode(thing, 1000)
        with pytest.raises(Undecodable):
            decode(thing)


def test_addresses() -> None:
    assert split_address("coder") == ("coder", None)
    assert split_address("coder/42") == ("coder", "42")
    assert split_address("coder/a/b c") == ("coder", "a/b c")
    assert split_address("coder/" + "ä" * 128) == ("coder", "ä" * 128)
    bad: list[Any] = ["", "/", "coder/", "/42", "coder//", "a b", "broadcast-x/1", "coder/\n", 7, None, b"coder"]
    for address in bad:
        with pytest.raises(MessageError):
            split_address(address)


@pytest.mark.parametrize("check", [check_agent, check_group])
def test_names(check: Callable[[str], None]) -> None:
    for name in ("a", "A-z_0.9", "x" * 128, "Broadcast-x", "broadcast", "..."):
        check(name)
    bad: list[Any] = ["", ".", "..", "a/b", "x" * 129, "broadcast-", "a\n", "ä", 7, None]
    for name in bad:
        with pytest.raises(MessageError):
            check(name)


def test_what_is_remembered_of_names_is_bounded() -> None:
    for n in range(25_000):
        split_address(f"coder/{n}")
        if n % 5 == 0:
            encode(made(type=f"type-{n}"), 1000)
    assert len(ADDRESSES) <= 10_000
    assert len(TYPES) <= 10_000
