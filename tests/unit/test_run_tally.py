"""The books of a run, the choice of whom to kill, and what is shown."""

from __future__ import annotations

import io
import logging
import sys
import time
from typing import Any

from hivewire.cli.chaos import Chaos
from hivewire.cli.live import Live, logs_above
from hivewire.cli.tally import Tally
from hivewire.cli.team_members import Members
from hivewire.message import Message
from hivewire.rules.plan import Plan, Subtask
from hivewire.rules.plan_state import Event, Failed, Started, event_of, new_run
from hivewire.rules.plan_step import step


class Party(Members):
    """Members that only remember who was killed."""

    kind = "process"

    def __init__(self) -> None:
        super().__init__(2, lambda text: None)
        self.killed: list[str] = []

    async def run(self) -> None:
        raise NotImplementedError

    def kill(self, name: str) -> bool:
        self.killed.append(name)
        return True

    def stop(self) -> None:
        raise NotImplementedError


class Game:
    """A run of ten equal pieces and a last one, played by hand."""

    def __init__(self) -> None:
        self.party = Party()
        self.said: list[str] = []
        self.chaos = Chaos(self.party, self.said.append)
        pieces = tuple(Subtask(name=f"p{n}", assigned_to="mine") for n in range(10))
        last = Subtask(name="last", assigned_to="write", dependencies=("p*",))
        state = new_run("r", Plan(subtasks=(last, *pieces)), ["mine", "write"])
        self.tally = Tally(state, self.chaos.look)
        self.give(Started(at=0.0))
        for name, row in self.tally.state.rows.items():
            if row.status == "running":
                self.tally.sent(self.message(row.message_id, subtask=name))

    def give(self, event: Event) -> None:
        self.tally.stepped(step(self.tally.state, event)[0])

    def message(self, message_id: str, **content: Any) -> Message:
        return Message(type="task", sender="x", to="y", id=message_id, content=content)

    def id_of(self, name: str) -> str:
        return self.tally.state.rows[name].message_id

    def start(self, name: str, member: str, at: float | None = None) -> None:
        when = time.time() if at is None else at
        content = {"state": "started", "message": self.id_of(name), "member": member, "at": when}
        self.tally.told(Message(type="event", sender=member, to="y", content=content))

    def answer(self, name: str) -> None:
        row = self.tally.state.rows[name]
        known = row if row.status == "running" else None
        self.tally.answered(Message(type="result", sender="x", to="y", in_reply_to=row.message_id), known)
        self.give(event_of(row, {}, 1.0))


def test_a_member_is_killed_in_the_middle_and_the_takeover_is_measured() -> None:
    game = Game()
    for n in range(3):
        game.start(f"p{n}", "1")
        game.answer(f"p{n}")
    assert game.party.killed == []
    game.start("p3", "1")
    assert game.party.killed == ["1"]
    [kill] = game.tally.kills
    game.start("p4", "2")
    assert game.party.killed == ["1"], "one kill is enough"
    game.start("p3", "2", at=kill.at + 1.5)
    assert kill.taken_over == {game.id_of("p3"): 1.5}
    assert game.tally.takeover_s == 1.5
    assert game.tally.redelivered == 1
    assert "in the middle of p3" in game.said[0]
    game.give(Failed(at=1, version=1, subtask="p9", attempt=1, error="x"))
    assert "taken over 1.50 s" in game.said[1]


def test_the_killed_one_takes_nothing_over_from_itself() -> None:
    game = Game()
    for n in range(3):
        game.start(f"p{n}", "1")
        game.answer(f"p{n}")
    game.start("p3", "1")
    [kill] = game.tally.kills
    game.start("p3", "1", at=kill.at - 0.001)  # news that was under way
    assert (kill.taken_over, game.tally.takeover_s) == ({}, None)


def test_a_kill_that_struck_nothing_is_said_and_another_one_follows() -> None:
    game = Game()
    for n in range(3):
        game.start(f"p{n}", "1")
        game.answer(f"p{n}")
    game.start("p3", "1")
    game.answer("p3")  # it had been stored a moment before the kill
    assert game.tally.kills[0].missed
    game.start("p4", "2")
    assert game.party.killed == ["1", "2"]
    assert any("just finished" in line for line in game.said)
    assert game.tally.takeover_s is None


def test_what_is_lost_and_doubled_is_counted() -> None:
    game = Game()
    game.answer("p0")
    game.answer("p0")
    assert game.tally.duplicates == 1
    for n in range(1, 10):
        row = game.tally.state.rows[f"p{n}"]
        if n != 5:
            game.answer(f"p{n}")
        else:  # its result is booked, but no answer was seen: this is what a lost message looks like
            game.give(event_of(row, {}, 1.0))
    assert game.tally.lost == 1
    assert game.tally.messages_sent == 10 + 10


def test_failed_subtasks_are_not_lost() -> None:
    game = Game()
    game.give(Failed(at=1, version=1, subtask="p0", attempt=1, error="dead letter"))
    for n in range(1, 10):
        game.answer(f"p{n}")
    assert game.tally.state.header.status == "failed"
    assert game.tally.lost == 0


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_log_lines_do_not_fall_into_the_picture() -> None:
    game, stream = Game(), Terminal()
    live = Live(stream)
    root = logging.getLogger()
    handler = logging.StreamHandler(sys.stderr)
    root.addHandler(handler)
    try:
        with logs_above(live):
            live.show(game.tally)
            logging.getLogger("hivewire.test").warning("something happened")
        assert handler.stream is sys.stderr
    finally:
        root.removeHandler(handler)
    picture, line = stream.getvalue().split("\x1b[1A\x1b[J")
    assert "mine" in picture
    assert line == "something happened\n"


def test_capabilities_are_shown_in_the_order_of_the_work() -> None:
    game = Game()
    assert list(game.tally.by_capability().items()) == [("mine", (0, 10)), ("write", (0, 1))]
    stream = io.StringIO()
    live = Live(stream)
    live.show(game.tally)
    live.tell("a line with \x1b[31mcolour")
    assert "mine 0/10, write 0/1" in stream.getvalue()
    assert "\x1b" not in stream.getvalue()
