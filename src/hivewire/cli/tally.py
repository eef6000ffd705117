"""The books of a run: what was sent, answered, delivered again; who works on what; how long a takeover took."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any, Final

import msgspec

from hivewire.cli.team_process import STARTED
from hivewire.coordination.watcher import Watcher
from hivewire.message import Message
from hivewire.rules.plan_state import Row, RunState

_SHUT: Final = ("done", "failed", "skipped", "cancelled")


class Start(msgspec.Struct, frozen=True):
    """A handler was started: who does which subtask since when. `message` is the id of its message."""

    message: str
    subtask: str
    member: str
    at: float


class Kill(msgspec.Struct):
    """A member was killed while it was on these subtasks. They are taken over when somebody else starts them."""

    member: str
    at: float
    pieces: dict[str, Start]
    taken_over: dict[str, float] = {}
    """By message: seconds from the kill to the next start."""
    finished: set[str] = set()
    """Messages whose answer had been stored before the kill."""

    @property
    def missed(self) -> bool:
        """Whether everything it had in hand was finished already."""
        return self.finished >= self.pieces.keys()


class Tally(Watcher):
    """Follows one run. `changed` is called after each change that somebody may want to see or act on."""

    def __init__(self, state: RunState, changed: Callable[[Tally], None] = lambda tally: None) -> None:
        self.state = state
        self.began_at = time.time()
        self.tasks_sent = 0
        self.answers = 0
        self.events = 0
        self.redelivered = 0
        self.duplicates = 0
        self.kills: list[Kill] = []
        self.at_work: dict[str, Start] = {}
        """By message: what was started and is not answered."""
        self._names: dict[str, str] = {}
        self._unanswered: set[str] = set()
        self._started: set[str] = set()
        self._changed = changed
        self._ordered: dict[str, int] = {}
        self._ordered_version = 0

    def stepped(self, state: RunState) -> None:
        self.state = state
        for name in [name for name in self.at_work if self._is_over(name)]:
            del self.at_work[name]
        self._changed(self)

    def sent(self, message: Message) -> None:
        self.tasks_sent += 1
        self._names[message.id] = message.content["subtask"]
        self._unanswered.add(message.id)

    def answered(self, message: Message, row: Row | None) -> None:
        self.answers += 1
        asked = message.in_reply_to or ""
        if row is None:
            self.duplicates += 1
            return
        self._unanswered.discard(asked)
        self.at_work.pop(asked, None)
        for kill in self.kills:
            if asked in kill.pieces and asked not in kill.taken_over:
                kill.finished.add(asked)

    def told(self, message: Message) -> None:
        self.events += 1
        content = message.content
        if isinstance(content, Mapping) and content.get("state") == STARTED:
            self._start(content)
        self._changed(self)

    @property
    def messages_sent(self) -> int:
        """All that was stored for this run: subtasks, answers, events."""
        return self.tasks_sent + self.answers + self.events

    @property
    def lost(self) -> int:
        """Subtask messages that were stored and of which nothing was heard: no answer, no failure, no new attempt."""
        return sum(not self._is_explained(name) for name in self._unanswered)

    @property
    def takeover_s(self) -> float | None:
        """From the kill to the last of the killed pieces being started again."""
        times = [seconds for kill in self.kills for seconds in kill.taken_over.values()]
        return max(times, default=None)

    def killed(self, member: str, at: float) -> Kill:
        """Book that this member was killed, with all that it had started and nobody has answered."""
        pieces = {name: start for name, start in self.at_work.items() if start.member == member}
        self.at_work = {name: start for name, start in self.at_work.items() if name not in pieces}
        self.kills.append(Kill(member, at, pieces))
        return self.kills[-1]

    def by_capability(self) -> dict[str, tuple[int, int]]:
        """(finished, all) subtasks of each capability, those that others wait for before the others."""
        found: dict[str, tuple[int, int]] = {}
        for row in self.state.rows.values():
            done, whole = found.get(row.spec.assigned_to, (0, 0))
            found[row.spec.assigned_to] = (done + (row.status in _SHUT), whole + 1)
        order = self._order()
        return {name: found[name] for name in sorted(found, key=lambda name: order[name])}

    def _order(self) -> dict[str, int]:
        """For each capability how many subtasks its first subtask waits for; the same for a plan version."""
        version = self.state.header.version
        if self._ordered_version != version:
            self._ordered_version = version
            self._ordered = {}
            for name, row in self.state.rows.items():
                if row.spec.assigned_to not in self._ordered:
                    self._ordered[row.spec.assigned_to] = len(self.state.graph.ancestors(name))
        return self._ordered

    def _start(self, content: Mapping[str, Any]) -> None:
        name = str(content.get("message"))
        start = Start(
            name, self._names.get(name) or self._name_of(name), str(content.get("member")), float(content["at"])
        )
        if name in self._started:
            self.redelivered += 1
        self._started.add(name)
        if not self._is_over(name):
            self.at_work[name] = start
        for kill in self.kills:
            if name in kill.pieces and start.member != kill.member and name not in kill.taken_over:
                kill.taken_over[name] = start.at - kill.at

    def _name_of(self, message_id: str) -> str:
        rows = self.state.rows.values()
        return next((row.spec.name for row in rows if row.message_id == message_id), "an earlier attempt")

    def _is_explained(self, message_id: str) -> bool:
        row = self.state.rows.get(self._names[message_id])
        return row is None or row.message_id != message_id or row.status in ("failed", "cancelled")

    def _is_over(self, message_id: str) -> bool:
        name = self._names.get(message_id) or self._name_of(message_id)
        row = self.state.rows.get(name)
        return row is None or row.message_id != message_id or row.status != "running"
