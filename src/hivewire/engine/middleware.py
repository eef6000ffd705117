"""Wrapping what goes out and what comes in: how security, limits and tracing are added."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Protocol

from hivewire.message import Message

Next = Callable[[Message], Awaitable[Any]]


class Middleware(Protocol):
    """Called with a message and the rest of the way. May change the message, act before and after, or
    raise: outgoing, the sender gets the exception; incoming, `Reject` makes a dead letter and anything
    else is a failed attempt."""

    async def __call__(self, message: Message, next: Next, /) -> Any: ...


def chain(middleware: Sequence[Middleware]) -> Callable[[Message, Next], Awaitable[Any]]:
    """The first one is the outermost."""

    def call(message: Message, last: Next) -> Awaitable[Any]:
        step = last
        for layer in reversed(middleware):
            step = _bind(layer, step)
        return step(message)

    return call


def _bind(layer: Middleware, after: Next) -> Next:
    async def step(message: Message) -> Any:
        return await layer(message, after)

    return step
