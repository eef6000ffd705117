"""What the callers of a protocol name is looked at before a store sees it. Each raises `MessageError`."""

from __future__ import annotations

from collections.abc import Collection, Iterable

from hivewire.codec import check_agent, check_group, check_type
from hivewire.codec.names import check_texts
from hivewire.engine.subscriptions import ANY_TYPE
from hivewire.errors import MessageError, duration_s
from hivewire.message import Message


def check_message(message: object) -> None:
    if not isinstance(message, Message):
        raise MessageError(f"a hivewire.Message can be sent, broadcast and answered, not {type(message).__name__}")


def check_subscription(agent: str, types: object, groups: object) -> None:
    check_agent(agent)
    for what, names in (("types", types), ("groups", groups)):
        if not isinstance(names, Collection) or isinstance(names, str | bytes):
            raise MessageError(f"subscribe {agent}: {what} are a list of names, not {type(names).__name__}")
        for name in names:
            if what == "groups":
                check_group(name)
            elif name != ANY_TYPE:
                check_type(name)


def letters_of(what: object) -> tuple[str | None, list[str] | None]:
    """Dead letters: those of an agent, or these ids."""
    if isinstance(what, str):
        check_texts((what,), "the name of an agent")
        return what, None
    if not isinstance(what, Iterable) or isinstance(what, bytes):
        raise MessageError(
            f"dead letters are asked for by the name of an agent or a list of ids, not by {type(what).__name__}"
        )
    ids = list(what)
    check_texts(ids, "the id of a dead letter")
    return None, ids


def check_ids(ids: object, agent: object) -> None:
    if not isinstance(ids, Collection) or isinstance(ids, str | bytes):
        raise MessageError(f"messages are named by a list of ids, not by {type(ids).__name__}")
    check_texts(ids, "the id of a message")
    if agent is not None:
        check_texts((agent,), "the name of an agent")


def check_value(name: object, data: object, version: object, ttl_s: object) -> None:
    """A store that would keep something else could not be read by anybody any more."""
    check_texts((name,), "the name of a value")
    if not isinstance(data, bytes) or type(version) is not int:
        raise MessageError(f"value {name}: bytes and a version, not {type(data).__name__} and {type(version).__name__}")
    if ttl_s is not None:
        duration_s(ttl_s, "ttl_s")
