"""A message never changes; a changed one is a copy."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from hivewire.message import Message, MessageType, Priority


def test_a_message_has_an_id_and_a_time_of_its_own() -> None:
    one, other = (Message(type="task", sender="me", to="you") for _ in range(2))
    assert one.id != other.id
    assert timedelta(0) <= datetime.now(UTC) - one.created_at < timedelta(seconds=10)
    assert one != other


def test_messages_share_no_metadata() -> None:
    one, other = (Message(type="task", sender="me") for _ in range(2))
    one.metadata["x"] = 1
    assert other.metadata == {}
    assert other.extra == {}


@pytest.mark.parametrize("field", Message.__struct_fields__)
def test_no_field_can_be_set(field: str) -> None:
    message = Message(type="task", sender="me")
    with pytest.raises(AttributeError):
        setattr(message, field, "changed")


def test_a_copy_keeps_the_id_unless_it_is_named() -> None:
    message = Message(type="task", sender="me", to="you", content=1)
    copy = message.replace(content=2, to="them")
    assert (copy.id, copy.content, copy.to, copy.sender) == (message.id, 2, "them", "me")
    assert message.content == 1
    assert message.replace(id="other").id == "other"


def test_an_unknown_field_is_refused() -> None:
    with pytest.raises(TypeError):
        Message(type="task", sender="me", subject="x")  # type: ignore[call-arg]
    with pytest.raises(TypeError):
        Message(type="task", sender="me").replace(subject="x")


def test_fields_are_named_never_counted() -> None:
    with pytest.raises(TypeError):
        Message("task", "me")  # type: ignore[call-arg]


def test_the_names_and_numbers_of_the_reference() -> None:
    kinds = ["request", "response", "event", "task", "query", "inform", "delegate", "result", "error"]
    assert [kind.value for kind in MessageType] == kinds
    assert {level.name: level.value for level in Priority} == {"LOW": 1, "NORMAL": 5, "HIGH": 8, "CRITICAL": 10}
    assert Message(type=MessageType.TASK, sender="me").type == "task"
    assert Message(type="task", sender="me").priority == Priority.NORMAL
