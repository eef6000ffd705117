"""What messages say of the subtasks of a run, as events for its state."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from hivewire.message import Message, MessageType
from hivewire.rules.plan_state import (
    Begun,
    Failed,
    Incoming,
    Row,
    RunState,
    Vanished,
    begun_message,
    event_of,
)


class Meaning:
    """Each event has an id that follows from the message of the attempt: what is told twice is one event."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock

    def of_answers(self, answers: Sequence[Message], state: RunState) -> list[Incoming]:
        """Those of answers and starts that are waited for."""
        waiting = {row.message_id: row for row in state.rows.values() if row.status == "running"}
        found = []
        for message in answers:
            begun = begun_message(message.content) if message.type == MessageType.EVENT else None
            row = waiting.get(begun or message.in_reply_to or "")
            if row is not None and begun:
                found.append(Incoming(f"begun:{begun}", Begun(**self._attempt(row))))
            elif row is not None:
                found.append(Incoming(f"answer:{message.in_reply_to}", self._event(message, row)))
        return found

    def of_dead(self, message_id: str, why: str, state: RunState) -> list[Incoming]:
        """The message of an attempt is among the dead letters."""
        return [Incoming(f"answer:{message_id}", self.failed(row, why)) for row in _running(message_id, state)]

    def of_vanished(self, message_id: str, state: RunState) -> list[Incoming]:
        """The message of an attempt is nowhere."""
        return [
            Incoming(f"vanished:{message_id}", Vanished(**self._attempt(row))) for row in _running(message_id, state)
        ]

    def failed(self, row: Row, error: str) -> Failed:
        return Failed(**self._attempt(row), error=error)

    def _event(self, message: Message, row: Row) -> Any:
        if message.type == MessageType.ERROR:
            return self.failed(row, str(message.content))
        return event_of(row, message.content, self._clock())

    def _attempt(self, row: Row) -> dict[str, Any]:
        return {"at": self._clock(), "version": row.version, "subtask": row.spec.name, "attempt": row.attempt}


def concerns_the_state(message: Message) -> bool:
    """An answer, or the start of a subtask whose time counts from it; other events are only noted."""
    return message.type != MessageType.EVENT or begun_message(message.content) is not None


def _running(message_id: str, state: RunState) -> list[Row]:
    return [row for row in state.rows.values() if row.message_id == message_id and row.status == "running"]
