"""Who can do what: the capabilities of a team's workers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence


class Roster:
    """For each capability the names of the workers that have it. Made from `(name, capabilities)` pairs.

    >>> roster = Roster([("anna", ["write"]), ("ben", ["write", "read"])])
    >>> roster.capabilities["write"]
    ('anna', 'ben')
    """

    def __init__(self, members: Iterable[tuple[str, Iterable[str]]]) -> None:
        found: dict[str, list[str]] = {}
        names: dict[str, None] = {}
        for name, capabilities in members:
            names[name] = None
            for capability in capabilities:
                found.setdefault(capability, []).append(name)
        self.names: Sequence[str] = tuple(names)
        self.capabilities: Mapping[str, Sequence[str]] = {each: tuple(others) for each, others in found.items()}

    def worker_for(self, capability: str, message_id: str) -> str:
        """One of those who can; for the same message always the same one, so that a resend is recognised."""
        able = self.capabilities[capability]
        return able[sum(message_id.encode()) % len(able)]
