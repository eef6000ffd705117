"""Bad input made by a seed: bytes that were messages once, and messages with odd parts. Some of both are legal."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from random import Random
from typing import Any, Final

from hivewire.codec import encode
from hivewire.message import Message
from hivewire.testing.bad_bytes import BAD_BYTES, ODD_BYTES

_TOKENS: Final = (
    b"null", b"true", b"-", b"1e999", b"0" * 400, b"{}", b"[]", b"[[", b"}", b"]", b'"', b'""', b"\\u0000", b"\\ud800",
    b"\x00", b"\xff", b"\xc3", b"\xef\xbb\xbf", b",", b":", b" ", b"\n", b'"id"', b'"content_encoding":"base64",',
    b"NaN", b"2026-13-40T25:61:61Z", b"\xf0\x9f\x98\x80", b"99999999999999999999999",
)  # fmt: skip


def generated_bytes(seed: int, number: int) -> Iterator[bytes]:
    """Wire forms after one to five changes: bytes flipped, cut out, doubled, moved, replaced by tokens."""
    chance = Random(seed)
    roots = [body for _, body in BAD_BYTES + ODD_BYTES if 0 < len(body) < 5_000]
    for _ in range(number):
        body = bytearray(encode(_plain(chance), 1 << 20) if chance.random() < 0.5 else chance.choice(roots))
        for _ in range(chance.randint(1, 5)):
            chance.choice(_CHANGES)(body, chance)
        yield bytes(body)


def _place(body: bytearray, chance: Random) -> int:
    return chance.randrange(len(body) + 1)


def _flip(body: bytearray, chance: Random) -> None:
    if body:
        body[chance.randrange(len(body))] ^= 1 << chance.randrange(8)


def _cut(body: bytearray, chance: Random) -> None:
    start = _place(body, chance)
    del body[start : start + chance.randint(1, 8)]


def _end(body: bytearray, chance: Random) -> None:
    del body[_place(body, chance) :]


def _double(body: bytearray, chance: Random) -> None:
    start = _place(body, chance)
    part = body[start : start + chance.randint(1, 40)]
    at = _place(body, chance)
    body[at:at] = part


def _insert(body: bytearray, chance: Random) -> None:
    at = _place(body, chance)
    body[at:at] = chance.choice(_TOKENS)


def _overwrite(body: bytearray, chance: Random) -> None:
    at, token = _place(body, chance), chance.choice(_TOKENS)
    body[at : at + len(token)] = token


def _noise(body: bytearray, chance: Random) -> None:
    at = _place(body, chance)
    body[at:at] = chance.randbytes(chance.randint(1, 16))


_CHANGES: Final[tuple[Callable[[bytearray, Random], None], ...]] = (
    _flip, _flip, _cut, _end, _double, _insert, _insert, _overwrite, _noise,
)  # fmt: skip


def _plain(chance: Random) -> Message:
    return Message(
        type=chance.choice(("task", "query", "ä")),
        sender="tester",
        to=chance.choice(("bad", "bad/7")),
        content=_value(chance, 3, legal=True),
        key=chance.choice((None, "k")),
        metadata={"a": chance.random()},
        id=f"made-{chance.getrandbits(64)}",
        created_at=datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC),
    )


def generated_messages(seed: int, number: int, to: str) -> Iterator[Message]:
    """Messages of which one to three fields are odd."""
    chance = Random(seed)
    for n in range(number):
        fields: dict[str, Any] = {"type": "task", "sender": "tester", "to": to, "content": n, "id": f"made-{seed}-{n}"}
        for _ in range(chance.randint(1, 3)):
            name = chance.choice(tuple(_FIELDS))
            fields[name] = _FIELDS[name](chance)
        yield Message(**fields)


_ODD_TEXTS: Final = (
    "", " ", "a", "a b", "ä", "\u200b", "\ud800", "\x00", "a\nb", "'; DROP TABLE lanes; --", "{x}", "%s", "..", "\\",
    "x" * 128, "x" * 129, "x" * 256, "x" * 257, "\u0000unordered", "broadcast-a", "~group/x", "~reply/x", "a/b",
    "a/b/c",
)  # fmt: skip
_ODD_NUMBERS: Final = (
    0, -1, 1, 5, 10, 11, 2**31, 2**53, 2**63, 2**64, -(2**63) - 1, 10**400, 0.0, -0.0, 1e-9, 1e308, 5e-324,
    float("nan"), float("inf"), True,
)  # fmt: skip


def _text(chance: Random) -> Any:
    if chance.random() < 0.1:
        return chance.choice((None, 7, b"bytes", ["list"], object()))
    if chance.random() < 0.3:
        return "".join(
            chr(chance.choice((chance.randrange(128), chance.randrange(0x300)))) for _ in range(chance.randrange(20))
        )
    return chance.choice(_ODD_TEXTS)


def _number(chance: Random) -> Any:
    return chance.choice(_ODD_NUMBERS) if chance.random() < 0.9 else chance.choice((None, "5", [1], {}))


def _value(chance: Random, levels: int, *, legal: bool = False) -> Any:
    kind = chance.randrange(9)
    if levels and kind == 0:
        return [_value(chance, levels - 1, legal=legal) for _ in range(chance.randrange(4))]
    if levels and kind == 1:
        return {f"n{n}": _value(chance, levels - 1, legal=legal) for n in range(chance.randrange(4))}
    if legal:
        return chance.choice((None, True, chance.randrange(100), chance.random(), "text", "ä\u2028"))
    if kind == 2:
        return chance.choice((object(), {1, 2}, {1: 2}, b"raw", bytearray(b"raw"), memoryview(b"raw"), (1, 2), 3 + 4j))
    if kind == 3:
        nested: Any = 1
        for _ in range(chance.choice((2, 50, 400, 3_000))):
            nested = [nested]
        return nested
    return _text(chance) if kind < 7 else _number(chance)


def _time(chance: Random) -> Any:
    good = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC) + timedelta(seconds=chance.randrange(10**9))
    return chance.choice(
        (
            good,
            good.replace(tzinfo=None),
            datetime.min.replace(tzinfo=UTC),
            datetime.max.replace(tzinfo=UTC),
            "today",
            None,
            5,
        )
    )


_FIELDS: Final[dict[str, Callable[[Random], Any]]] = {
    "id": _text,
    "type": _text,
    "sender": _text,
    "key": _text,
    "in_reply_to": _text,
    "content": lambda chance: _value(chance, 3),
    "metadata": lambda chance: chance.choice((None, [], {"a": _value(chance, 1)}, {1: 2}, {"": ""}, {"\ud800": 1})),
    "created_at": _time,
    "ttl_s": _number,
    "priority": _number,
    "extra": lambda chance: chance.choice(({}, {"more": _value(chance, 1)}, {"id": "again"}, {5: 5}, None)),
}
