"""Told what happens in runs, as it happens in this process."""

from __future__ import annotations

from hivewire.message import Message
from hivewire.rules.plan_state import Row, RunState


class Watcher:
    """This one does nothing with what it is told."""

    def stepped(self, state: RunState) -> None:
        """The state has changed and is stored."""

    def sent(self, message: Message) -> None:
        """The protocol has stored the message of a subtask."""

    def answered(self, message: Message, row: Row | None) -> None:
        """A result arrived. `row` is None when nobody waits for it: doubled or outdated."""

    def told(self, message: Message) -> None:
        """An event arrived that says how a subtask gets on."""
