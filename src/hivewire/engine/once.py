"""A result that is stored before it is visible."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import msgspec

from hivewire.backend import Backend

_PREFIX = "once/"


async def once(backend: Backend, name: str, fn: Callable[[], Awaitable[Any]], keep_s: float) -> Any:
    """The stored result, else `fn`'s, stored before it is returned and kept for `keep_s`.

    A crash after `fn` has had its effect and before the result is stored computes it again: that window
    cannot be closed for effects outside the store. Of two that compute at the same time, the first to
    store wins and both return its result.
    """
    key = _PREFIX + name
    entry = await backend.get(key)
    if entry.version:
        return msgspec.json.decode(entry.value)
    value = msgspec.json.encode(await fn())
    if await backend.put(key, value, entry.version, ttl_s=keep_s) is None:
        value = (await backend.get(key)).value
    return msgspec.json.decode(value)
