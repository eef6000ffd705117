"""What the commands share."""

from __future__ import annotations

import json
from argparse import ArgumentTypeError

import pytest

from hivewire.cli.options import UsageError, count, duration_s, print_table, printable, target_of
from hivewire.cli.queues import _print, rows_of
from hivewire.stored import Depth
from hivewire.testing.kit import memory


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("60s", 60), ("500ms", 0.5), ("2m", 120), ("1h30m", 5400), ("7d", 604800), ("1.5", 1.5), (" 3s ", 3), ("0", 0)],
)
def test_durations(text: str, seconds: float) -> None:
    assert duration_s(text) == seconds


@pytest.mark.parametrize("text", ["", "s", "5 parsecs", "-1s", "1h30", "nan", "٣s", "1s,2s"])
def test_what_is_no_duration_is_refused(text: str) -> None:
    with pytest.raises(ArgumentTypeError, match="duration"):
        duration_s(text)


@pytest.mark.parametrize(("text", "number"), [("1", 1), ("100_000", 100_000), ("1,000", 1000)])
def test_counts(text: str, number: int) -> None:
    assert count(text) == number


@pytest.mark.parametrize("text", ["0", "-3", "1.5", "many", ""])
def test_what_is_no_count_is_refused(text: str) -> None:
    with pytest.raises(ArgumentTypeError, match="whole number"):
        count(text)


def test_a_url_is_the_target_and_a_type_is_a_setting() -> None:
    assert target_of(None) == (None, {})
    assert target_of("sqlite:///a.db") == ("sqlite:///a.db", {})
    assert target_of("memory") == target_of("inmemory") == (None, {"protocol": "inmemory"})
    with pytest.raises(UsageError, match="rabbit"):
        target_of("rabbit")


def test_a_table_cannot_move_the_cursor(capsys: pytest.CaptureFixture[str]) -> None:
    print_table([{"agent": "a\x1b[2Jb\n", "ready": 3}, {"agent": "c", "ready": 12}], ["agent", "ready"])
    assert capsys.readouterr().out == "agent        ready\na\\x1b[2Jb\\n      3\nc               12\n"
    assert printable("naïve 🙂") == "naïve 🙂"


def test_a_table_as_json_keeps_all_keys(capsys: pytest.CaptureFixture[str]) -> None:
    print_table([{"agent": "a", "hidden": None}], ["agent"], as_json=True)
    assert json.loads(capsys.readouterr().out) == [{"agent": "a", "hidden": None}]


async def test_a_queue_s_row_tells_what_others_have_deleted(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    async with memory() as protocol:
        await protocol.subscribe("coder")
        rows = await rows_of(protocol, [])
        _print(rows, as_json=False)
        assert "lost" not in capsys.readouterr().out

        async def depth(agent: str) -> Depth:
            return Depth(lost=3)

        monkeypatch.setattr(protocol, "depth", depth)
        rows = await rows_of(protocol, ["coder"])
        _print(rows, as_json=False)
    assert rows[0]["lost"] == 3
    head, line = capsys.readouterr().out.splitlines()
    assert line.split()[head.replace("in flight", "in_flight").split().index("lost")] == "3"
