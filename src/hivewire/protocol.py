"""The messaging protocol: the same promises on every backend."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import msgspec

from hivewire.backend import Depth, Mode
from hivewire.delivery import Delivery
from hivewire.message import Message
from hivewire.rules.retry import Retry
from hivewire.rules.trail import Explanation as Explanation

if TYPE_CHECKING:
    from hivewire.rules.schedule import CatchUp


class Receipt(msgspec.Struct, frozen=True, gc=False):
    """The message is stored. `duplicate` is None unless an idempotency key was checked by the store;
    True means that `id` names the message that was sent first."""

    id: str
    duplicate: bool | None = None


class DeadLetter(msgspec.Struct, frozen=True, kw_only=True):
    """A message that will not be tried again. `message` is None when `raw` cannot be read.
    `reason` is one of the words `max_attempts`, `rejected`, `expired`, `unsubscribed`, `no_handler`, `malformed`,
    `content_lost`, `crashed`; `error` says more: the last traceback, what a handler rejected it for.
    Of an `error` of more than 65,536 characters both ends are kept. `cursor` continues a listing (`after=`); so does
    the `id`, as long as the letter is there, by a longer way."""

    id: str
    agent: str
    message: Message | None
    raw: bytes
    reason: str
    error: str
    attempts: int
    first_at: float
    dead_at: float
    worker: str
    cursor: str


class Delayed(msgspec.Struct, frozen=True, kw_only=True):
    """A message that is not due yet. `message` is None when it cannot be read. `cursor` continues a listing, as of a
    `DeadLetter`."""

    id: str
    agent: str
    message: Message | None
    stored_at: float
    due_at: float
    cursor: str


class Schedule(msgspec.Struct, frozen=True, kw_only=True):
    """A message that is sent again and again. `when`: a cron expression, or a duration. `next_at` is its first time
    that was not fired yet, `last_at` the last one that was (0: none), in seconds since the epoch."""

    name: str
    when: str
    timezone: str
    catch_up: CatchUp
    message: Message
    next_at: float
    last_at: float
    fired: int


class Health(msgspec.Struct, frozen=True, kw_only=True):
    """`durability`: `volatile`, `process` (survives a process kill) `disk` (fsync), or `unknown`: the
    store does not tell."""

    ok: bool
    backend: str
    durability: str
    detail: str = ""
    warnings: Sequence[str] = ()
    latency_s: float = 0.0


class ProtocolMetrics(msgspec.Struct, kw_only=True):
    """Counts since this object was made. The first five are what the reference counts; its names for three of them,
    `total_messages_…`, can be read, too."""

    messages_sent: int = 0
    messages_received: int = 0
    messages_failed: int = 0
    average_latency: float = 0.0
    """Seconds from storing to handing out, exponential average with factor 0.2, a sample a batch."""
    last_updated: float = 0.0
    acked: int = 0
    nacked: int = 0
    """Attempts that are followed by another; the last one of a message that dies is in `dead`."""
    redelivered: int = 0
    dead: int = 0
    expired: int = 0
    duplicates: int = 0
    late_replies: int = 0
    purged: int = 0
    """Dead letters that this process purged because they were older than `dead_letter_keep_s`."""
    fired: int = 0
    """Times of schedules for which this process sent the message."""
    trail_dropped: int = 0
    """Events that came too fast for the trail and were not kept."""
    in_flight: int = 0
    lost: int = 0
    """Messages that this process found to have been deleted from the store by others."""
    paused: int = 0
    """Parts of queues from which this process takes nothing more until some of what it holds is finished: more is
    known of the unfinished than the store can keep."""

    @property
    def total_messages_sent(self) -> int:
        return self.messages_sent

    @property
    def total_messages_received(self) -> int:
        return self.messages_received

    @property
    def total_messages_failed(self) -> int:
        return self.messages_failed


class Subscription(msgspec.Struct, frozen=True, kw_only=True):
    """`types` None: all types."""

    agent: str
    types: Sequence[str] | None
    groups: Sequence[str]
    mode: Mode | None


class Value(msgspec.Struct, frozen=True):
    """A small value that all processes share. `version` rises with each change."""

    data: bytes
    version: int


Handle = Callable[[Delivery], Awaitable[None]]


class Protocol(ABC):
    """Send and receive messages between agents, over one backend. Made by `hivewire.connect`."""

    @abstractmethod
    async def send(
        self, message: Message, *, delay_s: float = 0, idempotency_key: str | None = None, timeout_s: float = 30
    ) -> Receipt:
        """Store the message; when this returns, it will be handled or kept as a dead letter.

        Waits while the queue is full or the store is away, up to `timeout_s`, then raises `QueueFull` or
        `ConnectionLost`. One try may take what its store allows it (SQLite 4 s for a locked file, Redis
        `redis.read_timeout_s`, Kafka `kafka.write_timeout_s`), however short `timeout_s` is.
        Raises `TooLarge`, `Undecodable`, `MessageError` for a message that cannot be sent.
        """

    @abstractmethod
    async def send_many(self, messages: Sequence[Message], *, timeout_s: float = 30) -> list[Receipt]:
        """Like `send` for each, in order, in one round trip where the backend can."""

    @abstractmethod
    async def receive(self, agent: str, *, limit: int = 10, wait_s: float = 5.0) -> list[Delivery]:
        """Up to `limit` messages, at most one of each key; an empty list after `wait_s`."""

    @abstractmethod
    def consume(self, agent: str, *, prefetch: int = 1) -> AsyncIterator[Delivery]:
        """Deliveries for ever; up to `prefetch` are taken ahead. Once it has begun it outlives outages of the store."""

    @abstractmethod
    async def serve(
        self,
        agent: str,
        handle: Handle,
        *,
        concurrency: int = 1,
        timeout_s: float | None = None,
        retry: Callable[[str], Retry | None] | None = None,
        timeout_of: Callable[[str], float | None] | None = None,
        stop: Awaitable[object] | None = None,
        drain_s: float = 10.0,
    ) -> None:
        """Handle messages, up to `concurrency` at a time, until `stop` is done or this is cancelled.

        Returning from `handle` acks, raising nacks by `retry(type)` or the default policy; acks are stored
        in batches. `timeout_of(type)`, else `timeout_s`, else the setting `handler_timeout_s` limits one
        handler. On `stop` what runs may finish for `drain_s`; then it is cancelled and given back.
        """

    @abstractmethod
    async def request(self, message: Message, *, timeout_s: float = 30.0) -> Message:
        """Send, and wait for the reply. Raises `TimedOut`; a later reply is dropped and counted."""

    @abstractmethod
    async def reply(self, message: Message, content: Any, *, type: str = "response") -> Receipt:
        """Answer `message` where its `metadata["reply_to"]` says, else to its sender."""

    @abstractmethod
    async def deliver_reply(self, answer: Message) -> Receipt:
        """Store a reply that was made by hand: never refused for a full queue; to a mailbox that is gone
        it is dropped and counted."""

    @abstractmethod
    async def broadcast(self, message: Message, group: str, *, durable: bool = True) -> Receipt:
        """To every member of the group, each with its own ack and retry; an empty group gets nothing."""

    @abstractmethod
    async def subscribe(
        self, agent: str, types: Sequence[str] = (), *, groups: Sequence[str] = (), mode: Mode = "ordered"
    ) -> None: ...

    @abstractmethod
    async def unsubscribe(self, agent: str, types: Sequence[str] = (), *, groups: Sequence[str] = ()) -> None:
        """Without types and groups: from everything."""

    @abstractmethod
    async def subscription(self, agent: str) -> Subscription: ...

    @abstractmethod
    async def agents(self) -> Sequence[str]:
        """Agents that have a queue."""

    @abstractmethod
    async def forget(self, agent: str) -> None:
        """Remove an agent that nobody needs any more: its subscription, and its queue with every message and
        dead letter in it. Nobody may receive for it meanwhile; a later send makes a new queue."""

    @abstractmethod
    async def depth(self, agent: str) -> Depth: ...

    @abstractmethod
    async def dead_letters(
        self, agent: str | None = None, *, limit: int = 100, after: str | None = None
    ) -> list[DeadLetter]:
        """Dead letters, the oldest first; `after`: behind the one with this `cursor` (or `id`)."""

    @abstractmethod
    async def replay(self, what: str | Sequence[str]) -> int:
        """Dead letters back to their queues, attempts at zero: the ids in a list, or all of an agent."""

    @abstractmethod
    async def purge_dead(
        self, what: str | Sequence[str] | None = None, *, older_than_s: float | None = None
    ) -> int: ...

    @abstractmethod
    async def delayed(self, agent: str, *, limit: int = 100, after: str | None = None) -> list[Delayed]:
        """Messages that are not due yet, the soonest first."""

    @abstractmethod
    async def cancel_delayed(self, ids: Collection[str], *, agent: str | None = None) -> int:
        """Remove messages that are not due yet, of one agent or wherever they are; how many were still there.
        A message that has fallen due is never removed."""

    @abstractmethod
    async def schedule(
        self, name: str, when: str | float, message: Message, *, timezone: str = "UTC", catch_up: CatchUp = "one"
    ) -> None:
        """Send the message at each time of `when`: a cron expression (in `timezone`), or seconds between two
        (`90`, `"5m"`, `"@every 5m"`). Fired once however many processes are there, by one of them; kept over restarts
        until `unschedule`. Times at which nobody was there: `one` sends the latest of them, `all` each, `none`
        nothing that is more than a minute late. Made again as it is, it stays as it is: each process may call this when
        it starts. `metadata` tells the handler `schedule`, `due_at` and how many were `missed`."""

    @abstractmethod
    async def unschedule(self, name: str) -> bool:
        """End a schedule; whether there was one. What it has sent stays sent."""

    @abstractmethod
    async def schedules(self) -> list[Schedule]:
        """All schedules of this store, by name."""

    @abstractmethod
    async def cleanup(self, older_than_s: float) -> int:
        """Forget settled ids, idempotency keys, the trail and left-behind contents older than that, and give space
        back; how many of them there were. Never a message or a dead letter. Redis and Kafka keep ids and keys until
        their windows end."""

    @abstractmethod
    async def explain(self, id: str) -> Explanation:
        """The life of a message, and of its copies for a group's members. Looks through all queues: slow."""

    @abstractmethod
    def metrics(self) -> ProtocolMetrics: ...

    @abstractmethod
    async def health(self) -> Health:
        """Never raises and never blocks longer than a few seconds."""

    @abstractmethod
    async def close(self, drain_s: float = 10) -> None:
        """Stop taking, let what runs finish for `drain_s`, give the rest back, disconnect. Idempotent."""

    @abstractmethod
    async def value(self, name: str) -> Value:
        """A small value that all processes share, as it is in the store now; version 0 when there is none."""

    @abstractmethod
    async def set_value(self, name: str, data: bytes, version: int, *, ttl_s: float | None = None) -> Value | None:
        """Store the value if its version is still `version` (0: there is none), for `ttl_s` seconds or for good.
        None: somebody else was faster; read it again."""

    @abstractmethod
    async def values(self, prefix: str) -> Mapping[str, Value]:
        """Those whose names begin so, by name."""

    @abstractmethod
    async def once(
        self, scope: str, name: str, fn: Callable[[], Awaitable[Any]], find: Callable[[], Awaitable[Any]] | None = None
    ) -> Any:
        """The stored result of `fn` for (scope, name), computed if there is none. See `Context.once`."""

    @abstractmethod
    async def __aenter__(self) -> Self: ...

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()
