"""Which slot of a cluster a command belongs to, and which node has it."""

from __future__ import annotations

from binascii import crc_hqx
from collections.abc import Sequence
from functools import lru_cache
from typing import Final

from hivewire.backends.redis.address import Command, Reply

COUNT: Final = 16384

_SECOND = frozenset({"XGROUP", "XINFO", "OBJECT"})
_NONE = frozenset({"TIME", "CONFIG", "INFO", "WAIT", "SCRIPT", "PING", "CLUSTER", "ROLE", "COMMAND", "CLIENT"})


def key_of(command: Command) -> str | bytes | None:
    """Its first key; all keys of one command have one hash tag."""
    name = command[0]
    if name == "EVALSHA":
        return _text(command[3])
    if name in ("XREAD", "XREADGROUP"):
        return _text(command[command.index("STREAMS") + 1])
    if name in _NONE:
        return None
    return _text(command[2 if name in _SECOND else 1])


def _text(part: str | bytes | int | float) -> str | bytes:
    return part if isinstance(part, str | bytes) else str(part)


@lru_cache(maxsize=65536)
def slot_of(key: str | bytes) -> int:
    """As the server computes it: of what stands in the first braces, else of the whole."""
    name = key if isinstance(key, bytes) else key.encode()
    start = name.find(b"{")
    if start >= 0:
        end = name.find(b"}", start + 1)
        if end > start + 1:
            name = name[start + 1 : end]
    return crc_hqx(name, 0) % COUNT


Place = tuple[str, int]
"""Host and port."""
View = tuple[tuple[int, int, Place], ...]
"""First and last slot, and the master that has them; in order."""


def read_view(answer: Reply, asked: Place) -> tuple[View, set[Place]]:
    """From `CLUSTER SLOTS`, with all nodes that it names. A node that does not know its own name is the one
    that was asked."""
    view: list[tuple[int, int, Place]] = []
    nodes: set[Place] = set()
    for first, last, *servers in answer:
        places = [_place(server, asked) for server in servers]
        nodes.update(places)
        view.append((int(first), int(last), places[0]))
    return tuple(sorted(view)), nodes


def _place(server: Sequence[Reply], asked: Place) -> Place:
    host = (server[0] or b"").decode()
    return (asked[0] if host in ("", "?") else host, int(server[1]) or asked[1])


def chosen(views: Sequence[View]) -> View:
    """Where nodes do not agree: what most of them say, then who knows of more slots."""
    return max(views, key=lambda view: (views.count(view), sum(last - first + 1 for first, last, _ in view)))


def redirected(word: str, text: str, asked: Place) -> tuple[int, Place] | None:
    """What `MOVED 3999 host:port` says, or `ASK`."""
    parts = text.split()
    if len(parts) != 3 or parts[0] != word or not parts[1].isdigit():
        return None
    host, _, port = parts[2].rpartition(":")
    if not port.isdigit() or int(parts[1]) >= COUNT:
        return None
    return int(parts[1]), (host.strip("[]") or asked[0], int(port))


def is_of_whole_queue(command: Command) -> bool:
    """A script that may touch whatever stands under the hash tag: its key is what all of these begin with."""
    return command[0] == "EVALSHA" and str(command[3]).endswith("}:")


def parts_of(command: Command) -> Sequence[Command]:
    """The same of each key by itself, where a command reads several; else nothing."""
    if command[0] == "MGET":
        return [("MGET", key) for key in command[1:]] if len(command) > 2 else ()
    if command[0] != "XREAD" or "BLOCK" in command:
        return ()
    at = command.index("STREAMS") + 1
    count = (len(command) - at) // 2
    if count < 2:
        return ()
    return [(*command[:at], command[place], command[place + count]) for place in range(at, at + count)]


def merged(command: Command, answers: Sequence[Reply]) -> Reply:
    """What the whole command would have answered, from the answers of its parts; the first error, if there is one."""
    for answer in answers:
        if isinstance(answer, Exception):
            return answer
    found = [each for answer in answers for each in answer or ()]
    return found if found or command[0] == "MGET" else None
