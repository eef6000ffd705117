"""The simulation finds bugs of coordination: each of these is planted, and must be caught within a bounded number of
seeds, by the check that is meant for it."""

from __future__ import annotations

import itertools
from collections.abc import AsyncGenerator, Callable, Iterable, Sequence
from typing import Any

import msgspec
import pytest

from hivewire.coordination.errands import Errands
from hivewire.coordination.ledger import run_log, run_outbox, run_scripts
from hivewire.coordination.ledger.run_outbox import Kept
from hivewire.coordination.ledger.runs import Runs
from hivewire.coordination.ledger.store import Many, Query, Script
from hivewire.coordination.ledger.stored import StoredLedger
from hivewire.coordination.losses import Losses
from hivewire.coordination.meaning import Meaning
from hivewire.coordination.roster import Roster
from hivewire.coordination.stopping import Stops
from hivewire.delivery import Delivery
from hivewire.ids import new_id
from hivewire.rules import plan_state
from hivewire.rules.plan_state import Incoming, Row, RunState
from hivewire.rules.plan_step import _Step
from hivewire.testing.simulated import profile_of, try_seed

_MOST_SEEDS = 60

Plant = Callable[[pytest.MonkeyPatch], None]
_plants: list[tuple[Plant, str, int]] = []


def planted(caught_by: str, first: int = 0) -> Callable[[Plant], Plant]:
    """A bug; `caught_by` names a check that must be among those that see it. `first`: the seeds before do not show
    it, and would cost their time."""

    def add(plant: Plant) -> Plant:
        _plants.append((plant, caught_by, first))
        return plant

    return add


@planted("nothing_vanishes")
def answers_acknowledged_before_they_are_stored(patch: pytest.MonkeyPatch) -> None:
    original = Errands._take

    async def take(self: Errands, run: str, deliveries: Sequence[Delivery]) -> None:
        for delivery in deliveries:
            await delivery.ack()
        await original(self, run, deliveries)

    patch.setattr(Errands, "_take", take)


@planted("nothing_vanishes")
def forgotten_in_the_outbox_before_it_is_sent(patch: pytest.MonkeyPatch) -> None:
    original = Errands._send

    async def send(self: Errands, run: str, state: RunState, kept: Sequence[Kept]) -> list[Kept]:
        await self._runs.sent(run, kept)
        return await original(self, run, state, kept)

    patch.setattr(Errands, "_send", send)


@planted("everything_ends")
def outboxes_of_the_dead_are_not_looked_at(patch: pytest.MonkeyPatch) -> None:
    def nothing(*how: object) -> Script[list[str]]:
        yield Query("SELECT 1")
        return []

    patch.setattr(run_outbox, "left_behind", nothing)


@planted("one_message_an_attempt")
def recipient_chosen_anew_each_time(patch: pytest.MonkeyPatch) -> None:
    turn = itertools.count()

    def worker_for(self: Roster, capability: str, message_id: str) -> str:
        able = self.capabilities[capability]
        return able[next(turn) % len(able)]

    async def route(self: Runs, run: str, chosen: Iterable[tuple[str, str]]) -> None:
        return

    async def send(self: Errands, run: str, state: RunState, kept: Sequence[Any]) -> list[Kept]:
        fixed = [msgspec.structs.replace(each, recipient=each.recipient or self._choose(each, None)) for each in kept]  # type: ignore[arg-type]
        return await original(self, run, state, fixed)

    def choose(self: Errands, kept: Any, row: Any) -> str:
        return kept.recipient or self._team.roster.worker_for(kept.command.capability, kept.command.id)

    original = Errands._send
    patch.setattr(Roster, "worker_for", worker_for)
    patch.setattr(Runs, "route", route)
    patch.setattr(Errands, "_choose", choose)
    patch.setattr(Errands, "_send", send)


@planted("one_message_an_attempt")
def a_new_id_each_time_a_message_is_made(patch: pytest.MonkeyPatch) -> None:
    original = Errands._message

    def message(self: Errands, state: RunState, row: Row, to: str) -> Any:
        return original(self, state, row, to).replace(id=new_id())

    patch.setattr(Errands, "_message", message)


@planted("dependencies_come_first")
def dependents_sent_when_one_dependency_is_done(patch: pytest.MonkeyPatch) -> None:
    original = _Step._obstacle

    def obstacle(self: _Step, row: Row, only_done: bool) -> Row | None:
        found = original(self, row, only_done)
        return None if only_done and len(self._graph.after[row.spec.name]) > 1 else found

    patch.setattr(_Step, "_obstacle", obstacle)


@planted("outputs")
def answers_of_an_earlier_attempt_are_taken(patch: pytest.MonkeyPatch) -> None:
    """Answers are matched by the subtask's name alone, and not by their message."""

    def meaning(self: Meaning, answers: Sequence[Any], state: RunState) -> list[Any]:
        found = []
        for message in answers:
            mark = message.content.get("mark", "") if isinstance(message.content, dict) else ""
            name = mark.split("/")[1:2]
            row = state.rows.get(name[0]) if name else None
            if row is not None and row.status == "running":
                found.append(Incoming(f"answer:{message.id}", self._event(message, row)))
        return found + original(self, answers, state)

    original = Meaning.of_answers
    patch.setattr(Meaning, "of_answers", meaning)


@planted("outputs")
def outputs_are_not_handed_on(patch: pytest.MonkeyPatch) -> None:
    original = plan_state.content_of

    def content_of(state: RunState, row: Row) -> dict[str, Any]:
        content = original(state, row)
        return {**content, "outputs": dict(list(content["outputs"].items())[:1])}

    patch.setattr("hivewire.coordination.errands.content_of", content_of)


@planted("nothing_vanishes")
def the_dead_letters_of_workers_are_not_looked_at(patch: pytest.MonkeyPatch) -> None:
    async def nothing(self: Losses, agents: Sequence[str]) -> AsyncGenerator[Any]:
        for _ in ():
            yield

    patch.setattr(Losses, "dead", nothing)


@planted("nothing_vanishes")
def state_stored_without_what_follows(patch: pytest.MonkeyPatch) -> None:
    """The commands of every tenth step are not in the transaction."""
    turn = itertools.count()
    original = run_scripts._store_commands

    def store(state: RunState, commands: Sequence[Any], cause: Any) -> Script[None]:
        yield from original(state, commands if next(turn) % 10 else [], cause)

    patch.setattr(run_scripts, "_store_commands", store)


@planted("log_is_whole")
def numbers_of_the_log_are_counted_in_the_process(patch: pytest.MonkeyPatch) -> None:
    """By each process for itself, so that two of them leave gaps, or write one number twice."""
    original = run_log.add

    def add(run: str, last: int, entries: Sequence[Any]) -> Script[None]:
        yield from original(run, last + (1 if last and last % 9 == 0 else 0), entries)

    patch.setattr(run_log, "add", add)


@planted("planned_once")
def everybody_asks_for_the_plan(patch: pytest.MonkeyPatch) -> None:
    original = StoredLedger.acquire

    async def acquire(self: StoredLedger, name: str, owner: str, lease_s: float) -> Any:
        return await original(self, f"{name}/{owner}", owner, lease_s)

    patch.setattr(StoredLedger, "acquire", acquire)


@planted("outcomes")
def stale_timers_go_off(patch: pytest.MonkeyPatch) -> None:
    """The timer of a subtask counts from its sending, whether or not it was begun or is over."""
    original = _Step._dispatch

    def dispatch(self: _Step, row: Row) -> None:
        original(self, row)
        if not row.spec.dependencies:
            now = self._rows[row.spec.name]
            self._set(now, timer=self._set_timer(row.spec.name, 0.3))

    patch.setattr(_Step, "_dispatch", dispatch)


@planted("nothing_after_cancel", first=24)
def nobody_asks_whether_a_subtask_is_wanted(patch: pytest.MonkeyPatch) -> None:
    async def guard(self: Stops, run: str, message_id: str, work: Callable[[float], Any]) -> Any:
        return await work(float("inf"))

    patch.setattr(Stops, "guard", guard)


@planted("nothing_is_left", first=85)
def a_question_for_a_plan_outlives_its_run(patch: pytest.MonkeyPatch) -> None:
    """As it was: who looked around found it for ever."""
    original = run_scripts._finish

    def finish(state: RunState) -> Script[None]:
        rows = yield Query("SELECT run, seq, place, id, recipient, body, created_at FROM run_outbox", [])
        yield from original(state)
        yield Many(
            "INSERT INTO run_outbox (run, seq, place, id, recipient, body, created_at) "
            "VALUES ($1, $2, $3, $4, $5, $6, $7) ON CONFLICT DO NOTHING",
            [tuple(row) for row in rows if row[0] == state.header.run],
        )

    patch.setattr(run_scripts, "_finish", finish)


@planted("watchers")
def events_go_on_one_too_late(patch: pytest.MonkeyPatch) -> None:
    original = Runs.log

    async def log(self: Runs, run: str, after: int = 0, limit: int = 500) -> list[Any]:
        return await original(self, run, after + (1 if after else 0), limit)

    patch.setattr(Runs, "log", log)


@planted("recorded_once")
def a_result_is_stored_by_itself(patch: pytest.MonkeyPatch) -> None:
    """Whatever the row says: a late result of a subtask that is done completes its task again."""
    patch.setattr(run_scripts, "_TASK", run_scripts._TASK.replace("WHERE tasks.status <> excluded.status", ""))

    original = run_scripts._store_rows

    def store(before: RunState | None, state: RunState) -> Script[None]:
        yield from original(None if before is not None and state.header.seq % 7 == 0 else before, state)

    patch.setattr(run_scripts, "_store_rows", store)


@pytest.mark.parametrize(
    ("plant", "caught_by", "first"), [pytest.param(*each, id=each[0].__name__) for each in _plants]
)
def test_a_planted_bug_is_caught(plant: Plant, caught_by: str, first: int, monkeypatch: pytest.MonkeyPatch) -> None:
    plant(monkeypatch)
    seen: set[str] = set()
    for seed in range(first, first + _MOST_SEEDS):
        seen |= {line.partition(":")[0] for line in try_seed(profile_of(seed), seed).broken}
        if caught_by in seen:
            monkeypatch.undo()
            print(f"caught by seed {seed}")
            assert try_seed(profile_of(seed), seed).is_good  # it was this bug, not another one
            return
    pytest.fail(f"{plant.__name__} was not caught by {caught_by} in {_MOST_SEEDS} seeds, only by {sorted(seen)}")


def test_there_are_enough_planted_bugs() -> None:
    assert len(_plants) >= 12
