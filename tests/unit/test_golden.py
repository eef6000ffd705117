"""The wire form, file by file, as a Go program of the reference writes it: both ways."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from hivewire.codec import decode, encode
from hivewire.message import Message, MessageType

GOLDEN = Path(__file__).parents[1] / "golden"
FILES = {path.stem: path for path in sorted(GOLDEN.glob("*.json"))}
AT = datetime(2025, 3, 4, 5, 6, 7, 123456, UTC)


def _id(n: int) -> str:
    return f"6f1c2a50-6d1e-4b8f-9a53-0c6c3ad0b10{n}"


def _event(id: str, content: Any = None, **fields: Any) -> Message:
    made = {"type": "event", "sender": "monitor", "to": "writer", "content": content, "created_at": AT} | fields
    return Message(id=id, **made)


ONE = {"n": 1}
TASK = {
    "assigned_to": "analyst",
    "completed_at": None,
    "created_at": "2025-03-04T05:06:07.123456789Z",
    "dependencies": ["collect", "clean"],
    "id": "t-1",
    "input": {"limit": 1000, "ratio": 0.25, "tags": []},
    "name": "analyse",
    "priority": 5,
    "status": "pending",
}
RESULT = {
    "output": {"analysis": "stable", "confidence": 0.875, "rows": [[1, 2], [3, 4]]},
    "status": "completed",
    "task_id": "t-1",
}
NESTED: Any = {"a": [{"b": [{"c": [{"d": {"e": [[[[]]]]}}]}]}], "empty_list": [], "empty_object": {}}
NUMBERS = [0, -1, 2**53 + 1, 2**64 - 1, 0.1, 1e-9, 1e21, 1.7976931348623157e308, 5e-324]

EXPECTED = {
    "request": _event(_id(1), {"action": "status"}, type="request", sender="orchestrator", to="coder"),
    "response": _event(
        _id(2), {"ok": True}, type="response", sender="coder", to="orchestrator", in_reply_to=_id(1),
        metadata={"original_message_id": _id(1)},
    ),
    "event": _event(_id(3), "worker started", to=""),
    "task": _event(
        _id(4), TASK, type="task", sender="orchestrator", to="analyst", metadata={"attempt": 1, "group_id": "default"}
    ),
    "query": _event(_id(5), ["sources", 3, None, False], type="query", sender="researcher"),
    "inform": _event(_id(6), 42, type="inform", sender="writer", to="reviewer"),
    "delegate": _event(
        _id(7), {"reason": "busy"}, type="delegate", sender="orchestrator", to="worker-7", metadata={"hops": 2}
    ),
    "result": _event(_id(8), RESULT, type="result", sender="analyst", to="orchestrator", in_reply_to=_id(4)),
    "error": _event(
        _id(9), {"error": "model: context length exceeded"}, type="error", sender="coder", to="orchestrator",
        in_reply_to=_id(4), metadata={"retryable": False},
    ),
    "html_escaped": _event(
        "m-html", '<a href="x">a & b</a> \u2028\u2029 \\ \t\n', type="inform", sender="writer", to="reviewer"
    ),
    "unicode": _event(
        "m-unicode", {"text": "Grüße, 世界 🐝 e\u0301 \u202e", "ключ": "значение"}, type="inform", sender="writer",
        to="reviewer",
    ),
    "replaced_bytes": _event("m-fffd", "caf\ufffd", type="inform", sender="writer", to="reviewer"),
    "control_characters": _event("m-controls", "\0\x01\x1f\x7f", type="inform", sender="writer", to="reviewer"),
    "numbers": _event("m-numbers", NUMBERS),
    "nested": _event(
        "m-nested", NESTED, type="task", sender="orchestrator", to="coder",
        metadata={"trace": {"span": ["a", {"b": None}]}},
    ),
    "null_content": _event("m-null"),
    "null_metadata": _event("m-null-metadata", ONE),
    "no_metadata": _event("m-no-metadata", ONE),
    "empty_in_reply_to": _event("m-empty-reply", ONE, type="response", sender="coder"),
    "nanoseconds": _event("m-ns", ONE, created_at=AT + timedelta(microseconds=1)),
    "seconds": _event("m-s", ONE, created_at=AT.replace(microsecond=0)),
    "tenths": _event("m-tenths", ONE, created_at=AT.replace(microsecond=500_000)),
    "offset_east": _event("m-east", ONE, created_at=datetime(2025, 3, 3, 23, 36, 7, 250_000, UTC)),
    "offset_west": _event("m-west", ONE, created_at=datetime(2026, 1, 1, 7, 30, tzinfo=UTC)),
    "zero_time": _event("m-zero", ONE, created_at=datetime(1, 1, 1, tzinfo=UTC)),
    "our_fields": Message(
        id="0195600c-8a20-7000-8000-000000000001", type="task", sender="planner", to="coder/42", content=ONE,
        metadata={"reply_to": "planner"}, created_at=AT, key="order-7", ttl_s=1.5, priority=8,
    ),
    "bytes": _event("m-bytes", b"\x00\xff\x10\xfe", type="task", sender="planner", to="coder"),
    "unknown_fields": _event(
        "m-later", ONE, type="task", sender="planner", to="coder",
        extra={"tenant": "acme", "signature": {"alg": "Ed25519", "value": "AAAA"}, "hops": [1, 2]},
    ),
    "indented": _event("m-indented", ONE),
}  # fmt: skip

WRITTEN_OTHERWISE: dict[str, dict[str, Any]] = {
    "null_metadata": {"metadata": {}},
    "no_metadata": {"metadata": {}},
    "empty_in_reply_to": {"in_reply_to": None},
}
"""What we write in another way than the file; None: not at all."""


def test_every_file_has_an_expectation_and_every_type_a_file() -> None:
    assert FILES.keys() == EXPECTED.keys()
    assert {str(kind) for kind in MessageType} <= FILES.keys()


@pytest.mark.parametrize("name", FILES)
def test_a_file_is_read_as_the_message(name: str) -> None:
    assert decode(FILES[name].read_bytes()) == EXPECTED[name]


@pytest.mark.parametrize("name", FILES)
def test_the_message_is_written_as_the_file_says(name: str) -> None:
    written = json.loads(encode(EXPECTED[name], 1_000_000))
    golden: dict[str, Any] = json.loads(FILES[name].read_bytes())
    golden |= WRITTEN_OTHERWISE.get(name, {})
    golden = {field: value for field, value in golden.items() if field != "in_reply_to" or value is not None}
    created_at = datetime.fromisoformat(written.pop("created_at"))
    assert created_at.utcoffset() == timedelta(0)
    assert abs(created_at - datetime.fromisoformat(golden.pop("created_at"))) <= timedelta(microseconds=1)
    assert written == golden


def test_the_fields_that_the_reference_always_writes_are_always_written_and_in_its_order() -> None:
    fields = list(json.loads(encode(_event("m", None, to=""), 100)))
    assert fields == ["id", "type", "from", "to", "content", "metadata", "created_at"]


def test_html_characters_are_written_so_that_go_reads_them() -> None:
    assert json.loads(encode(EXPECTED["html_escaped"], 1000))["content"] == EXPECTED["html_escaped"].content
