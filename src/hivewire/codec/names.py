"""What may name agents, groups, instances, keys, types and ids. What was found good is remembered."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final

from hivewire.codec.values import shown
from hivewire.errors import MessageError, Undecodable
from hivewire.message import BROADCAST_PREFIX, REPLY_PREFIX, UNORDERED

MAX_ID_BYTES: Final = 256
SHORT: Final = MAX_ID_BYTES // 4
"""So many characters never have more than `MAX_ID_BYTES` in UTF-8."""

ADDRESSES: Final[dict[str, tuple[str, str | None]]] = {}
"""Good addresses, taken apart. Emptied when it is full: a look here is all that a message costs."""
TYPES: Final[set[str]] = set()
_FULL: Final = 10_000

_name_form = re.compile(r"[A-Za-z0-9._-]{1,128}").fullmatch
_control = re.compile(r"[\x00-\x1f\x7f-\x9f]").search


def check_agent(name: str) -> None:
    """Raise `MessageError` unless it can be the name of an agent."""
    _check_name(name, "an agent")


def check_group(name: str) -> None:
    """Raise `MessageError` unless it can be the name of a group."""
    _check_name(name, "a group")


def split_address(to: str) -> tuple[str, str | None]:
    """The agent and the instance of an address, `agent` or `agent/instance`.

    >>> split_address("coder/42")
    ('coder', '42')
    """
    if type(to) is str and (known := ADDRESSES.get(to)):
        return known
    if not isinstance(to, str):
        raise MessageError(f"an address is a str such as 'coder' or 'coder/42', not {type(to).__name__}")
    agent, slash, instance = to.partition("/")
    _check_name(agent, "an agent")
    if slash:
        _check_text(instance, "the instance in an address")
        if instance[0] == "/":
            raise MessageError(f"{to[:80]!r} has two slashes: write 'agent/instance'")
    if len(ADDRESSES) >= _FULL:
        ADDRESSES.clear()
    split = ADDRESSES[str(to)] = (agent, instance if slash else None)
    return split


def check_answerable(to: object) -> None:
    """Raise `MessageError` unless a reply can be sent there: to an agent, or to the mailbox of a request."""
    if not (isinstance(to, str) and to.startswith(REPLY_PREFIX)):
        split_address(to)  # type: ignore[arg-type]  # says so of what is no str


def _check_name(name: str, what: str) -> None:
    if not isinstance(name, str):
        raise MessageError(f"the name of {what} is a str, not {type(name).__name__}")
    if not _name_form(name) or name in {".", ".."}:
        raise MessageError(f"{name[:140]!r} can not name {what}: use 1 to 128 of the characters A-Z a-z 0-9 . _ -")
    if name.startswith(BROADCAST_PREFIX):
        raise MessageError(f"{name!r} can not name {what}: names that begin with {BROADCAST_PREFIX!r} are kept free")


def _check_text(text: object, what: str) -> None:
    """1 to 256 bytes of UTF-8 without control characters."""
    if not isinstance(text, str):
        raise MessageError(f"{what} is a str, not {type(text).__name__}")
    if not 0 < utf8_len(text, what) <= MAX_ID_BYTES or _control(text):
        raise MessageError(f"{what} has 1 to {MAX_ID_BYTES} bytes and no control characters; got {text[:80]!r}")


def utf8_len(text: str, what: str) -> int:
    try:
        return len(text.encode())
    except UnicodeEncodeError as error:
        raise Undecodable(f"{what} holds a lone surrogate, which is not text: {error}") from None


def check_texts(texts: Iterable[object], what: str) -> None:
    """Raise `MessageError` unless all of them are text that can be stored: a str without half a character."""
    for text in texts:
        if not isinstance(text, str):
            raise MessageError(f"{what} is a str, not {type(text).__name__}")
        utf8_len(text, what)


def check_id(id: object, what: str) -> None:
    if not isinstance(id, str) or not 0 < utf8_len(id, what) <= MAX_ID_BYTES:
        raise MessageError(f"{what} is a str of 1 to {MAX_ID_BYTES} bytes; got {shown(id)}")


def check_type(type: object) -> None:
    _check_text(type, "the type of a message")
    if len(TYPES) >= _FULL:
        TYPES.clear()
    TYPES.add(str(type))


def check_key(key: object) -> None:
    if key != UNORDERED:
        _check_text(key, "the key of a message")
