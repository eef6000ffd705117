"""Names in the server. All of one queue stand under one hash tag, so that scripts can change them together."""

from __future__ import annotations

from hivewire.backends.redis.address import pack

ROOT = "hivewire:"
IN_CATALOGUE = f"{ROOT}{{catalogue}}:"
QUEUES = f"{IN_CATALOGUE}queues"
EXPIRING = f"{IN_CATALOGUE}expiring"
CATALOGUE = f"{IN_CATALOGUE}values"
EPOCH = f"{IN_CATALOGUE}epoch"
NOTE = f"{IN_CATALOGUE}note:"
NOTES = f"{IN_CATALOGUE}notes"
CHANNEL = f"{ROOT}channel:"
GROUP_CHANNEL = "group/"
REPLY_PREFIX = "~reply/"
GROUP_PREFIX = "~group/"
INTERNAL_PREFIX = "~"
FOREIGN_STREAM = "multiagent:stream:"
"""Where programs of the reference send to an agent."""
FOREIGN_CHANNEL = "multiagent:broadcast:"
INLET_BELL = b"i"


def base(queue: str) -> str:
    return f"{ROOT}{{{queue}}}:"


def bell(queue: str) -> str:
    """The Pub/Sub channel that says where something can be read: shards, and `w` for what may be taken of a competing
    queue. Whose reads wait in the server does not listen to it."""
    return f"{ROOT}{{{queue}}}:bell"


def news(queue: str) -> str:
    """The Pub/Sub channel for all else: `*` for a delayed message, `m` for members, `i` for a stream of the
    reference."""
    return f"{ROOT}{{{queue}}}:news"


def _before_head(length: int) -> bytes:
    return b"$%d\r\n" % length


def _before_body(size: int) -> bytes:
    return b"\r\n$1\r\nb\r\n$%d\r\n" % size


_MOST_READY = 2_048
_BEFORE_HEAD = [_before_head(length) for length in range(_MOST_READY)]
_BEFORE_BODY = [_before_body(size) for size in range(_MOST_READY)]
"""Sizes of most messages, as they go over the wire: to write them anew costs more than all else of a command."""


class Names:
    """The names of one queue."""

    __slots__ = ("_xadds", "base", "bell", "late", "news", "spec", "streams")

    def __init__(self, queue: str) -> None:
        self.base = base(queue)
        self.bell = bell(queue)
        self.news = news(queue)
        self.spec = f"{self.base}spec"
        self.late = f"{self.base}late"
        self.streams: list[str] = []
        self._xadds: list[bytes] = []

    def stream(self, shard: int) -> str:
        while len(self.streams) <= shard:
            self.streams.append(f"{self.base}s{len(self.streams)}")
        return self.streams[shard]

    def xadd(self, shard: int, head: bytes, body: bytes) -> bytes:
        """The command that appends a record, as it goes over the wire: all but head and body is always the same."""
        while len(self._xadds) <= shard:
            name = self.stream(len(self._xadds)).encode()
            self._xadds.append(b"*7\r\n$4\r\nXADD\r\n$%d\r\n%b\r\n$1\r\n*\r\n$1\r\nh\r\n" % (len(name), name))
        size, length = len(body), len(head)
        before = _BEFORE_BODY[size] if size < _MOST_READY else _before_body(size)
        first = _BEFORE_HEAD[length] if length < _MOST_READY else _before_head(length)
        return b"".join((self._xadds[shard], first, head, before, body, b"\r\n"))

    def packed_if_there(self, shard: int, head: bytes, body: bytes) -> bytes:
        """The same, for a stream that must be there."""
        return pack(("XADD", self.stream(shard), "NOMKSTREAM", "*", "h", head, "b", body))
