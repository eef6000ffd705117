"""`hivewire explain` as a user calls it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import hivewire as hw
from tests.system.commands import Hive


@pytest.fixture
def hive(tmp_path: Path) -> Hive:
    return Hive(tmp_path)


async def _buried(hive: Hive, trail: str) -> str:
    message = hw.Message(type="task", sender="me", to="coder", content=1)
    async with hw.connect(hive.protocol, trail=trail, worker_name="ann") as protocol:
        await protocol.send(message)
        (delivery,) = await protocol.receive("coder", limit=1, wait_s=10)
        await delivery.reject("not \x1b[31mmine")
    return message.id


async def test_the_printed_story(hive: Hive) -> None:
    id_ = await _buried(hive, "all")
    assert hive("dead", "replay", id_, HIVEWIRE_TRAIL="all").code == 0
    ran = hive("explain", id_, HIVEWIRE_TRAIL="all")
    assert (ran.code, ran.err) == (0, "")
    told = [re.sub(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d{3}", "TIME", line) for line in ran.out.splitlines()]
    assert told == [
        "TIME  sent by me to coder",
        "TIME  stored",
        "TIME  attempt 1 started at ann",
        "TIME  dead letter of coder: rejected: not \\x1b[31mmine",
        "TIME  [replay 1] replayed to coder: it was dead (rejected: not \\x1b[31mmine)",
        "now                      [replay 1] waits in the queue of coder (stored TIME)",
    ]


async def test_as_json(hive: Hive) -> None:
    id_ = await _buried(hive, "trouble")
    told = hive("explain", id_, "--json").json
    assert told["id"] == id_
    assert [event["what"] for event in told["events"]] == ["dead"]
    assert [(place["state"], place["agent"]) for place in told["places"]] == [("dead", "coder")]


async def test_by_default_it_says_that_only_trouble_was_recorded(hive: Hive) -> None:
    id_ = await _buried(hive, "trouble")
    ran = hive("explain", id_)
    assert ran.code == 0
    assert "trail=all" in ran.err
    assert "is off" in hive("explain", id_, HIVEWIRE_TRAIL="off").err


def test_a_message_that_nobody_knows(hive: Hive) -> None:
    ran = hive("explain", "nobody")
    assert (ran.code, ran.out) == (1, "")
    assert "nothing is known of nobody" in ran.err
    assert not (hive.folder / "hive.db").exists()
    assert hive("explain", "nobody", "--json").json == {"id": "nobody", "events": [], "places": [], "unsearched": []}


def test_no_id(hive: Hive) -> None:
    ran = hive("explain")
    assert ran.code == 2
    assert ran.is_one_sentence
