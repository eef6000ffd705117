"""What happened in a run: sends, starts of handlers, joins, and what the checks need of each."""

from __future__ import annotations

from collections import Counter

import msgspec

from hivewire.testing.seeded_program import Outcome


class Sent(msgspec.Struct):
    """One message that somebody tried to send, with every try."""

    id: str
    agent: str
    key: str
    number: int
    """In the order in which the sends of a slot began."""
    script: tuple[Outcome, ...]
    delay_s: float = 0.0
    ttl_s: float | None = None
    idempotency_key: str | None = None
    is_large: bool = False
    has_effect: bool = False
    tries: int = 0
    began_at: float = 0.0
    confirmed_at: float | None = None
    is_in_order: bool = False
    """The first try was confirmed, so it was stored before whatever was sent next."""
    receipt: str = ""
    """The id in the receipt: another one if it was a duplicate."""


class Started(msgspec.Struct):
    """One start of a handler."""

    at: float
    process: str
    slot: int
    agent: str
    id: str
    key: str
    replay: int
    attempt: int
    is_owner: bool
    """The process owned the key in the store at the start."""
    outcome: str = "running"
    ended_at: float | None = None
    refused_at: float | None = None
    """When its settlement raised `LeaseLost`: whoever did the work undoes it then."""


class Planned(msgspec.Struct):
    """One schedule. `due_at`: the times for which its messages came, by their ids."""

    name: str
    agent: str
    every_s: float
    confirmed_at: float | None = None
    due_at: dict[str, float] = {}


class Effect(msgspec.Struct, frozen=True):
    """Something that a handler did and that was to happen once."""

    at: float
    process: str
    id: str
    began_at: float


class Told(msgspec.Struct):
    """One broadcast."""

    id: str
    began_at: float
    tries: int = 0
    confirmed_at: float | None = None


class Membership(msgspec.Struct):
    """One join or leave of a listener."""

    listener: str
    joins: bool
    began_at: float
    done_at: float | None = None


class Outage(msgspec.Struct):
    """A time in which a process was stopped, dead, or cut off for longer than a lease could bear."""

    process: str
    began_at: float
    ended_at: float | None = None


class Book:
    """All of it, in the order in which it happened."""

    def __init__(self) -> None:
        self.sent: dict[str, Sent] = {}
        self.started: list[Started] = []
        self.starts: Counter[tuple[str, str, int]] = Counter()
        """How many starts there were of each life of a message, by agent, id and replay."""
        self.heard: list[Started] = []
        """Starts for volatile broadcasts."""
        self.told: dict[str, Told] = {}
        self.shouted: dict[str, Told] = {}
        self.answers: dict[str, object] = {}
        """What came as the reply to a request, by its id."""
        self.planned: dict[str, Planned] = {}
        self.effects: list[Effect] = []
        self.memberships: list[Membership] = []
        self.outages: list[Outage] = []
        self.errors: list[str] = []
        """What went wrong that must not: unexpected exceptions."""
        self.replayed: dict[str, int] = {}
        """How many dead letters of an agent were sent back."""
        self._log: list[tuple[float, str, tuple[object, ...]]] = []

    def write(self, at: float, what: str, *details: object) -> None:
        """`details`: what never changes; it is made a text when somebody reads it."""
        self._log.append((at, what, details))

    @property
    def log(self) -> list[str]:
        """Everything in one line each: two runs of one seed have the same."""
        return [f"{at:.6f} {what} " + " ".join(map(str, details)) for at, what, details in self._log]
