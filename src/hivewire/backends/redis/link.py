"""What the rest of the driver speaks through, however many connections stand behind it."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence

from hivewire.backends.redis.address import Address, Command, Reply
from hivewire.errors import BackendError, ConnectionLost, HivewireError, QueueFull


class Link(ABC):
    """The way to the store. It comes back by itself: what was under way when a connection broke raises
    `ConnectionLost`; what is asked while it comes back waits for it, in order."""

    retries: int = 0
    """How often `ask` repeats."""
    on_return: Callable[[], None] | None = None
    """Called when a connection that had broken is there again, or another server has taken over."""

    @abstractmethod
    def post(
        self, commands: Sequence[Command], *, firm: bool = False, beyond_s: float = 0.0
    ) -> asyncio.Future[list[Reply]]:
        """Send in this turn of the loop; awaiting the future gives the answers, errors as values.
        `firm`: the answers come when as many replicas have it as `wait_replicas` says. `beyond_s`: for how
        long the commands themselves wait in the server, beyond the time that an answer may take."""

    def post_for(
        self, told: Callable[[asyncio.Future[list[Reply]]], None], commands: Sequence[Command], *, beyond_s: float
    ) -> asyncio.Future[list[Reply]]:
        """`post` for one who is called with the future as soon as it is done: with answers, where it can be, in the
        very turn of the loop in which they come."""
        posted = self.post(commands, beyond_s=beyond_s)
        posted.add_done_callback(told)
        return posted

    def store(
        self, key: str, packed: bytes, channel: str = "", what: int = 0
    ) -> asyncio.Future[BackendError | None] | None:
        """Send one command on this key, packed already, of which only what goes wrong is told; and ring, if there is a
        channel under the same hash tag. None: nothing was done, use `post`."""
        return None

    def hurry(self) -> None:
        """What was posted waits for nothing else of this turn of the loop, where it can leave at once."""
        return

    @abstractmethod
    def ring(self, channel: str, what: int | str) -> None:
        """Tell who listens there, once a write, after what was posted before."""

    @abstractmethod
    async def each(self, commands: Sequence[Command]) -> list[tuple[str, list[Reply]]]:
        """Ask every server that holds messages; their answers by the server's name."""

    def apart(self, commands: Sequence[Command]) -> Sequence[Sequence[int]]:
        """The numbers of those that go over one connection: each part has its outcome by itself."""
        return [range(len(commands))] if commands else []

    def addresses(self) -> list[Address]:
        """Every server that can be asked."""
        return []

    def reached(self) -> set[tuple[str, int]]:
        """Where its connections go, those that are being made, too."""
        return set()

    @abstractmethod
    def cut(self, why: str) -> None:
        """Break what connections there are: what is under way is lost, the next call connects anew."""

    @abstractmethod
    async def close(self) -> None: ...

    async def ask(self, commands: Sequence[Command]) -> list[Reply]:
        """For commands that may be carried out twice: repeated, a few times, when the connection breaks or the
        server cannot just now."""
        pause_s = _FIRST_PAUSE_S
        for left in range(self.retries, -1, -1):
            try:
                answers = await self.post(commands)
                if not left or not any(isinstance(answer, Exception) and is_passing(answer) for answer in answers):
                    return answers
            except ConnectionLost:
                if not left:
                    raise
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, _MOST_PAUSE_S)
        raise AssertionError("the last try returns or raises")

    async def call(self, *command: str | bytes | int | float) -> Reply:
        """One command that may be carried out twice. Its error is raised."""
        (answer,) = await self.ask((command,))
        return good(answer, str(command[0]))


_FIRST_PAUSE_S = 0.05
_MOST_PAUSE_S = 1.0
_WAIT_AND_SEE = (
    "LOADING",
    "BUSY",
    "READONLY",
    "MASTERDOWN",
    "TRYAGAIN",
    "CLUSTERDOWN",
    "UNBLOCKED",
    "OOM",
    "MISCONF",
    "NOSCRIPT",
    "MOVED",
    "ASK",
    "NOREPLICAS",
)

ON_THE_WAY = "its slot of the cluster is on the way to another node"


def is_on_its_way(answer: Reply) -> bool:
    """It was refused because its slot moves to another node of the cluster."""
    return isinstance(answer, Exception) and (
        str(answer).startswith(("ASK ", "TRYAGAIN", "MOVED ")) or str(answer) == ON_THE_WAY
    )


def is_passing(error: Exception) -> bool:
    """It was not carried out, and may be when it is repeated."""
    return isinstance(error, ConnectionLost) or (
        not isinstance(error, HivewireError) and str(error).startswith(_WAIT_AND_SEE)
    )


def good(answer: Reply, doing: str) -> Reply:
    """The answer, or the error that it is. A server that may be well again soon: `ConnectionLost`."""
    if isinstance(answer, Exception):
        if isinstance(answer, HivewireError):
            raise answer
        text = str(answer)
        if not is_passing(answer):
            raise BackendError(f"{doing}: {text.rstrip('.')}{_advice(text)}")
        if text.startswith("OOM"):
            raise QueueFull(f"{doing}: the server has no memory left (its maxmemory): {text}")
        if text.startswith(("MOVED", "ASK")):
            raise ConnectionLost(f"{doing}: its slot moves to another node of the cluster: {text}")
        raise ConnectionLost(f"{doing}: the server is not able to: {text}")
    return answer


def _advice(text: str) -> str:
    if text.startswith("NOAUTH"):
        return "; set redis.password (REDIS_PASSWORD), and redis.username for a user of the access list"
    if text.startswith("WRONGPASS"):
        return "; check redis.username and redis.password"
    if text.startswith("WRONGTYPE"):
        return "; another program has written to a key that begins with hivewire:, which must be removed"
    # In a script, Redis and Valkey say it in words of their own.
    if text.startswith(("NOPERM", "ERR ACL failure")) or "The user executing the script can" in text:
        return "; what the user of the access list must be allowed to do stands in docs/guides/redis.md"
    return ""
