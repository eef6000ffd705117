"""Two hundred bad inputs made by hand, for `send` and for bytes that somebody put straight into a store.

`BAD_MESSAGES` and `BAD_BYTES` are all refused: the bytes as `Undecodable`, the messages with the error that
`outcome` names. `ODD_MESSAGES` and `ODD_BYTES` look bad and are legal: they must arrive whole.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, date, datetime, time, timedelta, timezone
from decimal import Decimal
from enum import Enum
from pathlib import PurePosixPath
from typing import Any, Final
from uuid import UUID

from hivewire.errors import MessageError, TooLarge, Undecodable
from hivewire.message import Message
from hivewire.testing.bad_bytes import BAD_BYTES, ODD_BYTES

__all__ = ["BAD_BYTES", "BAD_MESSAGES", "MAX_SIZE_BYTES", "ODD_BYTES", "ODD_MESSAGES", "Make", "outcome"]

MAX_SIZE_BYTES: Final = 1_048_576
"""The limit that `BAD_MESSAGES` is made for: the default of `max_message_size_bytes`."""

Make = Callable[[], Message]


def outcome(name: str) -> type[MessageError]:
    """The error that refuses the message of this name in `BAD_MESSAGES`."""
    return _OUTCOMES[name]


def _message(**changes: Any) -> Make:
    return lambda: Message(**{"type": "task", "sender": "tester", "to": "good", "content": {"n": 1}} | changes)


def _content(content: Any) -> Make:
    return _message(content=content)


def _made(content: Callable[[], Any]) -> Make:
    """Content that is large, or good for one use, is made when it is needed."""

    def make() -> Message:
        return _content(content())()

    return make


def _nested(levels: int, inner: Any = None) -> Any:
    for _ in range(levels):
        inner = [inner]
    return inner


def _nested_objects(levels: int) -> Any:
    inner: Any = 1
    for _ in range(levels):
        inner = {"a": inner}
    return inner


def _holds_itself() -> Message:
    content: list[Any] = []
    content.append(content)
    return _content(content)()


def _holds_itself_in_an_object() -> Message:
    content: dict[str, Any] = {}
    content["self"] = [content]
    return _content(content)()


def _doubled() -> Message:
    """Sixty levels that hold the one below twice: small in memory, without end as JSON."""
    content: list[Any] = [1]
    for _ in range(60):
        content = [content, content]
    return _content(content)()


class _Colour(Enum):
    RED = object()


class _Text(str):
    __slots__ = ()


class _Number(int):
    pass


class _Thing:
    pass


_AN_HOUR = timedelta(hours=1)
_BEFORE_THE_YEAR_1 = datetime(1, 1, 1, tzinfo=timezone(_AN_HOUR))  # in UTC

_HOSTILE_NAMES: Final = {
    "a colon": "a:b", "a star": "a*", "a path": "../etc/passwd", "a dot": ".", "two dots": "..", "a newline": "a\nb",
    "a newline at the end": "good\n", "NUL": "a\x00b", "a space": "a b", "only a space": " ", "a tab": "a\tb",
    "braces": "a{b}", "empty braces": "{}", "a Cyrillic look-alike": "g\u043e\u043ed",
    "a full-width letter": "\uff47ood", "an umlaut": "\u00e4", "an emoji": "\U0001f41d",
    "a zero-width space": "good\u200b", "a direction override": "\u202edoog",
    "a byte order mark": "\ufeffgood", "a kept prefix": "broadcast-x", "129 characters": "a" * 129,
    "100,000 characters": "a" * 100_000, "a slash in front": "/good", "an empty instance": "good/",
    "two slashes": "good//42", "a control in the instance": "good/\x1b[2J", "a C1 control in the instance": "good/\x85",
    "an instance of 257 bytes": "good/" + "x" * 257,
    "an instance of 258 bytes in 129 letters": "good/" + "\u00e4" * 129,
    "a backslash": "a\\b", "a percent code": "%61", "a quote": "a'b", "a double quote": 'a"b', "a semicolon": "a;b",
    "a dollar": "$a", "a question mark": "a?", "a hash": "a#b", "an at": "a@b", "a tilde": "~a", "a comma": "a,b",
    "a lone surrogate": "a\ud800", "a lone surrogate in the instance": "good/\udfff", "markup": "<b>", "a URL": "http://a",
    "DEL": "a\x7f", "a combining accent": "e\u0301", "a superscript digit": "a\u00b2", "an Arabic digit": "a\u0661",
}  # fmt: skip

_REFUSED: Final[list[tuple[str, Make, type[MessageError]]]] = [
    *((f"to has {what}", _message(to=name), MessageError) for what, name in _HOSTILE_NAMES.items()),
    *(
        (f"sender has {what}", _message(sender=_HOSTILE_NAMES[what]), MessageError)
        for what in ("a colon", "a path", "a newline", "NUL", "a space", "braces", "a Cyrillic look-alike",
                     "a kept prefix", "129 characters", "an empty instance", "a lone surrogate")
    ),
    ("to is a number", _message(to=7), MessageError),
    ("to is None", _message(to=None), MessageError),
    ("to is bytes", _message(to=b"good"), MessageError),
    ("to is a list", _message(to=["good"]), MessageError),
    ("sender is empty", _message(sender=""), MessageError),
    ("sender is None", _message(sender=None), MessageError),
    ("sender is a number", _message(sender=1.5), MessageError),
    ("type is empty", _message(type=""), MessageError),
    ("type is None", _message(type=None), MessageError),
    ("type is a number", _message(type=1), MessageError),
    ("type is a list", _message(type=["task"]), MessageError),
    ("type has a newline", _message(type="task\nx"), MessageError),
    ("type has NUL", _message(type="\x00"), MessageError),
    ("type has 257 bytes", _message(type="t" * 257), MessageError),
    ("type has a lone surrogate", _message(type="\ud800"), Undecodable),
    ("id is empty", _message(id=""), MessageError),
    ("id has 257 bytes", _message(id="x" * 257), MessageError),
    ("id has 258 bytes in 129 letters", _message(id="\u00e4" * 129), MessageError),
    ("id is a number", _message(id=7), MessageError),
    ("id is None", _message(id=None), MessageError),
    ("id is bytes", _message(id=b"x"), MessageError),
    ("id is a UUID object", _message(id=UUID(int=7)), MessageError),
    ("id is a list", _message(id=["x"]), MessageError),
    ("id has a lone surrogate", _message(id="\udc00"), Undecodable),
    ("in_reply_to is a number", _message(in_reply_to=4), MessageError),
    ("in_reply_to has 257 bytes", _message(in_reply_to="x" * 257), MessageError),
    ("in_reply_to has a lone surrogate", _message(in_reply_to="\ud800"), Undecodable),
    ("key is empty", _message(key=""), MessageError),
    ("key is a number", _message(key=3), MessageError),
    ("key has 257 bytes", _message(key="k" * 257), MessageError),
    ("key has NUL", _message(key="k\x00"), MessageError),
    ("key has a newline", _message(key="k\n"), MessageError),
    ("key has a lone surrogate", _message(key="\ud800"), Undecodable),
    ("ttl_s is zero", _message(ttl_s=0), MessageError),
    ("ttl_s is below zero", _message(ttl_s=-1), MessageError),
    ("ttl_s is NaN", _message(ttl_s=float("nan")), MessageError),
    ("ttl_s is infinite", _message(ttl_s=float("inf")), MessageError),
    ("ttl_s is a text", _message(ttl_s="5s"), MessageError),
    ("ttl_s is True", _message(ttl_s=True), MessageError),
    ("ttl_s is a timedelta", _message(ttl_s=_AN_HOUR), MessageError),
    ("ttl_s is huge", _message(ttl_s=10**400), MessageError),
    ("priority is zero", _message(priority=0), MessageError),
    ("priority is 11", _message(priority=11), MessageError),
    ("priority is below zero", _message(priority=-5), MessageError),
    ("priority is a float", _message(priority=5.0), MessageError),
    ("priority is True", _message(priority=True), MessageError),
    ("priority is a text", _message(priority="high"), MessageError),
    ("priority is None", _message(priority=None), MessageError),
    ("priority is huge", _message(priority=10**5000), MessageError),
    ("metadata is None", _message(metadata=None), MessageError),
    ("metadata is a list", _message(metadata=[1]), MessageError),
    ("metadata is a text", _message(metadata="x"), MessageError),
    ("metadata has an int key", _message(metadata={1: 2}), Undecodable),
    ("metadata has a None key", _message(metadata={None: 2}), Undecodable),
    ("metadata holds NaN", _message(metadata={"x": float("nan")}), Undecodable),
    ("metadata holds a set", _message(metadata={"x": {1}}), Undecodable),
    ("metadata holds bytes", _message(metadata={"x": b"1"}), Undecodable),
    ("metadata is nested too deep", _message(metadata={"x": _nested(100)}), Undecodable),
    ("metadata is larger than a message may be", _message(metadata={"x": "y" * 3_000_000}), TooLarge),
    ("created_at has no time zone", _message(created_at=datetime(2026, 1, 1)), MessageError),  # noqa: DTZ001
    ("created_at is a text", _message(created_at="2026-01-01T00:00:00Z"), MessageError),
    ("created_at is a number", _message(created_at=0), MessageError),
    ("created_at is None", _message(created_at=None), MessageError),
    ("created_at is a date", _message(created_at=date(2026, 1, 1)), MessageError),
    ("created_at is a time of day", _message(created_at=time(1, tzinfo=UTC)), MessageError),
    ("created_at is before the year 1", _message(created_at=_BEFORE_THE_YEAR_1), MessageError),
    ("extra is a list", _message(extra=[1]), MessageError),
    ("extra names a field of its own", _message(extra={"from": "mallory"}), MessageError),
    ("extra names the encoding", _message(extra={"content_encoding": "base64"}), MessageError),
    ("extra has an int key", _message(extra={1: 1}), Undecodable),
    ("extra holds an object", _message(extra={"x": _Thing()}), Undecodable),
    ("content is NaN", _content(float("nan")), Undecodable),
    ("content is infinite", _content(float("inf")), Undecodable),
    ("content is minus infinite", _content(float("-inf")), Undecodable),
    ("content holds NaN", _content({"a": [1.0, float("nan")]}), Undecodable),
    ("content is a lone surrogate", _content("\ud800"), Undecodable),
    ("content holds a lone surrogate", _content(["ok", "\udfff"]), Undecodable),
    ("content has a lone surrogate as a key", _content({"\ud800": 1}), Undecodable),
    ("content has an int key", _content({1: "a"}), Undecodable),
    ("content has a float key", _content({1.5: "a"}), Undecodable),
    ("content has a bool key", _content({True: "a"}), Undecodable),
    ("content has a tuple as a key", _content({(1, 2): "a"}), Undecodable),
    ("content has bytes as a key", _content({b"a": 1}), Undecodable),
    ("content is a set", _content({1, 2}), Undecodable),
    ("content is a frozenset", _content(frozenset({1})), Undecodable),
    ("content holds a set", _content([{1}]), Undecodable),
    ("content holds bytes", _content({"raw": b"x"}), Undecodable),
    ("content holds a bytearray", _content([bytearray(b"x")]), Undecodable),
    ("content is an object", _content(_Thing()), Undecodable),
    ("content holds an object", _content([_Thing()]), Undecodable),
    ("content is a class", _content(_Thing), Undecodable),
    ("content is a function", _content(len), Undecodable),
    ("content is a generator", _made(lambda: (n for n in range(3))), Undecodable),
    ("content is a datetime", _content(datetime(2026, 1, 1, tzinfo=UTC)), Undecodable),
    ("content holds a date", _content({"d": date(2026, 1, 1)}), Undecodable),
    ("content holds a timedelta", _content([_AN_HOUR]), Undecodable),
    ("content is a Decimal", _content(Decimal("1.5")), Undecodable),
    ("content is a UUID", _content(UUID(int=1)), Undecodable),
    ("content is a complex number", _content(1j), Undecodable),
    ("content is a path", _content(PurePosixPath("/tmp")), Undecodable),
    ("content is an exception", _content(ValueError("x")), Undecodable),
    ("content is a message", _made(_message()), Undecodable),
    ("content is an Enum of objects", _content(_Colour.RED), Undecodable),
    ("content is a str of a class of its own", _content(_Text("x")), Undecodable),
    ("content holds an int of a class of its own", _content([_Number(1)]), Undecodable),
    ("content is an int of 4,301 digits", _content(10**4300), Undecodable),
    ("content holds an int of 100,000 digits", _content({"n": -(10**99_999)}), Undecodable),
    ("content is a list 101 deep", _content(_nested(101)), Undecodable),
    ("content is a list 100,000 deep", _made(lambda: _nested(100_000)), Undecodable),
    ("content is an object 101 deep", _content(_nested_objects(101)), Undecodable),
    ("content is a list that holds itself", _holds_itself, Undecodable),
    ("content is an object that holds itself", _holds_itself_in_an_object, Undecodable),
    ("content doubles at each of sixty levels", _doubled, TooLarge),
    ("content is a text one byte too large", _made(lambda: "x" * (MAX_SIZE_BYTES + 1)), TooLarge),
    ("content is a text too large in UTF-8", _made(lambda: "\u00e4" * (MAX_SIZE_BYTES // 2 + 1)), TooLarge),
    ("content is bytes, one too many", _made(lambda: bytes(MAX_SIZE_BYTES + 1)), TooLarge),
    ("content is a memoryview, one too many", _made(lambda: memoryview(bytes(MAX_SIZE_BYTES + 1))), TooLarge),
    ("content is an object that is too large", _made(lambda: {"x": "y" * MAX_SIZE_BYTES}), TooLarge),
    ("content is a list of too many numbers", _made(lambda: [0] * MAX_SIZE_BYTES), TooLarge),
    ("content is a text that grows sixfold in JSON", _made(lambda: "\x01" * MAX_SIZE_BYTES), TooLarge),
]  # fmt: skip

BAD_MESSAGES: Final[list[tuple[str, Make]]] = [(name, make) for name, make, _ in _REFUSED]
"""(name, what makes the message): refused by `send`, nothing stored."""

_OUTCOMES: Final[dict[str, type[MessageError]]] = {name: error for name, _, error in _REFUSED}

ODD_MESSAGES: Final[list[tuple[str, Make]]] = [
    ("content is None", _content(None)),
    ("content is an empty text", _content("")),
    ("content is NUL", _content("\x00")),
    ("content is bytes that are not UTF-8", _content(b"\xff\xfe\x00")),
    ("content is no bytes at all", _content(b"")),
    ("content is a list 100 deep", _content(_nested(100))),
    ("content is an int of 4,300 digits", _content(10**4299)),
    ("content is the smallest float", _content(5e-324)),
    ("content has an empty key", _content({"": 1})),
    ("content looks like the codec's own", _content({"content_encoding": "base64", "from": "x"})),
    ("content is as large as it may be", _made(lambda: "x" * MAX_SIZE_BYTES)),
    ("content is as many bytes as there may be", _made(lambda: bytes(MAX_SIZE_BYTES))),
    ("content is markup", _content("<script>alert('&')</script>")),
    ("content is a line separator", _content("\u2028\u2029")),
    ("id is SQL", _message(id="'; DROP TABLE messages; --")),
    ("id has 256 bytes", _message(id="x" * 256)),
    ("id is an emoji", _message(id="\U0001f41d")),
    ("type is of our own", _message(type="com.example/überprüfung v2")),
    ("the instance is a path", _message(to="good/a/../b")),
    ("the instance is in Chinese", _message(to="good/\u4e2d\u6587")),
    ("the year is 1", _message(created_at=datetime(1, 1, 1, tzinfo=UTC))),
    ("ttl_s is tiny", _message(ttl_s=1e-9)),
    ("an unknown field", _message(extra={"traceparent": "00-1", "x": {"y": [1]}})),
]
"""(name, what makes the message): legal, and arrives equal."""
