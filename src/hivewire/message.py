"""What agents say to each other."""

from __future__ import annotations

from datetime import UTC, datetime
from enum import IntEnum, StrEnum
from functools import partial
from typing import Any, Final

import msgspec

from hivewire.ids import new_id

BROADCAST_PREFIX: Final = "broadcast-"
REPLY_PREFIX: Final = "~reply/"
"""How the addresses of those begin who wait for the reply to a request."""


class MessageType(StrEnum):
    """The types that the reference system names. Any other name is allowed, too."""

    REQUEST = "request"
    RESPONSE = "response"
    EVENT = "event"
    TASK = "task"
    QUERY = "query"
    INFORM = "inform"
    DELEGATE = "delegate"
    RESULT = "result"
    ERROR = "error"


class Priority(IntEnum):
    """Higher is sooner, among the keys that wait; never within a key."""

    LOW = 1
    NORMAL = 5
    HIGH = 8
    CRITICAL = 10


PROGRESS: Final = "hivewire_progress"
BEGUN: Final = "begun"
"""In the metadata of what a handler tells about its work."""

EFFECTS: Final = "hivewire_effects"
"""In the metadata of a plan's subtask: what its effects are remembered by, over new attempts and new plans."""

STOPS: Final = "hivewire_stops"
"""In the metadata of a plan's subtask: the run whose stops concern it."""

SUBTASKS: Final = "hivewire_subtasks"
"""In the metadata of a plan's subtask: how many subtasks the plan has."""


UNORDERED: Final = "\x00unordered"
"""As `Message.key`: this message has a key of its own and waits for no other."""


_utc_now = partial(datetime.now, UTC)


class Message(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """What one agent says to another. Never changed after it was made; copy with `replace`.

    `to` is an agent's name or `name/instance`. Messages of one `key` are handled one at a time, in the
    order sent; the key is the instance, else `key`, else the sender. An `id` names one message: who sends it
    again sends the same, with the same key. Two with one id and different keys may be handled side by side,
    for nobody but a key's holder could know; the first that is settled makes later ones duplicates.
    `content` is any JSON value or bytes.
    `ttl_s` counts from storing, by the store's clock. `extra` holds fields that this version does not
    know; they survive a forward. (The garbage collector does not look into messages: one whose content
    holds the message itself, which cannot be sent, is never freed.)
    """

    type: str
    sender: str
    to: str = ""
    content: Any = None
    id: str = msgspec.field(default_factory=new_id)
    key: str | None = None
    in_reply_to: str | None = None
    metadata: dict[str, Any] = msgspec.field(default_factory=dict)
    created_at: datetime = msgspec.field(default_factory=_utc_now)
    ttl_s: float | None = None
    priority: int = 5
    extra: dict[str, Any] = msgspec.field(default_factory=dict)

    def replace(self, **changes: Any) -> Message:
        """A copy with the named fields changed; the id stays unless it is named."""
        return msgspec.structs.replace(self, **changes)
