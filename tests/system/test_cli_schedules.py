"""`hivewire schedules` and `hivewire delayed` as a user calls them."""

from __future__ import annotations

from pathlib import Path

import pytest

import hivewire as hw
from tests.system.commands import Hive


@pytest.fixture
def hive(tmp_path: Path) -> Hive:
    return Hive(tmp_path)


def test_added_listed_changed_and_removed(hive: Hive) -> None:
    empty = hive("schedules", "list")
    assert (empty.code, empty.out) == (0, "no schedules\n")
    added = hive(
        *("schedules", "add", "nightly", "30 3 * * mon-fri", "coder/7"),
        *("--timezone", "Europe/Berlin", "--content", '{"n": 1}', "--priority", "high", "--catch-up", "all"),
    )
    assert added.code == 0
    assert added.out.startswith("nightly: next at 20")
    (row,) = hive("schedules", "list", "--json").json
    assert (row["name"], row["when"], row["timezone"], row["catch_up"]) == (
        "nightly", "30 3 * * mon-fri", "Europe/Berlin", "all",
    )  # fmt: skip
    assert (row["to"], row["fired"], row["last_at"]) == ("coder/7", 0, None)
    assert (row["message"]["content"], row["message"]["priority"]) == ({"n": 1}, 8)
    changed = hive("schedules", "add", "nightly", "1h", "coder", "--json")
    assert changed.json["when"] == "1h"
    assert 3590 < changed.json["next_in_s"] <= 3600
    assert hive("schedules", "list").out.splitlines()[1].startswith("nightly  1h")
    assert hive("schedules", "remove", "nightly").out == "removed nightly\n"
    assert hive("schedules", "list").out == "no schedules\n"


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("add", "x", "every day", "coder"), "five: minute hour day month weekday"),
        (("add", "x", "0s", "coder"), "too often"),
        (("add", "x", "@daily", "coder", "--timezone", "Nowhere"), "no time zone 'Nowhere'"),
        (("add", "x", "5m", "no good"), "can not name an agent"),
        (("add", "x", "5m", "coder", "--content", "{"), "--content is not JSON"),
        (("add", "x", "5m", "coder", "--catch-up", "some"), "choose"),
        (("remove", "x"), "there is no schedule 'x'"),
        ((), "list|add|remove"),
    ],
)
def test_mistakes_get_one_sentence(hive: Hive, arguments: tuple[str, ...], says: str) -> None:
    hive("send", "coder", "--text", "so that there is a store")
    ran = hive("schedules", *arguments) if arguments else hive("schedules")
    assert ran.code == 2
    assert ran.is_one_sentence
    assert says in ran.err


async def test_a_schedule_of_the_command_is_fired_by_whoever_is_there(hive: Hive) -> None:
    assert hive("schedules", "add", "beat", "500ms", "coder", "--text", "tick", "--type", "beat").code == 0
    async with hw.connect(hive.protocol) as protocol:
        (delivery,) = await protocol.receive("coder", limit=1, wait_s=15)
        await delivery.ack()
    assert (delivery.message.type, delivery.message.content) == ("beat", "tick")
    assert delivery.message.metadata["schedule"] == "beat"


def test_delayed_messages_are_listed_and_cancelled(hive: Hive) -> None:
    nothing = hive("delayed", "list", "coder")
    assert (nothing.code, nothing.out) == (0, "nothing for coder waits for its time\n")
    ids = [hive("send", "coder", "--text", "later", "--delay", f"{n}h").out.strip() for n in (2, 1)]
    rows = hive("delayed", "list", "coder", "--json").json
    assert [row["id"] for row in rows] == ids[::-1]
    assert 3500 < rows[0]["due_in_s"] <= 3600
    assert "there are more than 1" in hive("delayed", "list", "coder", "--limit", "1").err
    gone = hive("delayed", "cancel", ids[0])
    assert (gone.code, gone.out) == (0, "cancelled 1\n")
    again = hive("delayed", "cancel", *ids, "--agent", "coder")
    assert (again.code, again.out) == (1, "cancelled 1\n")
    assert "1 of the ids" in again.err
    assert hive("delayed", "cancel").code == 2
