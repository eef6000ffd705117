"""The run of a plan as a pure function: `step(state, event) -> (state, commands)`."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Final

import msgspec

from hivewire.errors import InvalidPlan
from hivewire.ids import derived_id
from hivewire.rules.plan import checked_graph, read_subtasks
from hivewire.rules.plan_state import (
    Begun,
    Cancel,
    Command,
    Dispatch,
    Event,
    Failed,
    Finish,
    MakePlan,
    Planned,
    Result,
    Row,
    RunState,
    RunStatus,
    SendBack,
    SetTimer,
    Started,
    Stop,
    Timer,
    Vanished,
)

MAX_SEND_BACKS: Final = 3
"""A subtask may be sent back so often; the next time, the reviewer's subtask fails."""

MAX_RESENDS: Final = 3
"""A subtask whose message vanishes is sent anew so often; the next time, it fails."""


def step(state: RunState, event: Event) -> tuple[RunState, list[Command]]:
    """What one event makes of a run. Events that are stale, doubled or late return `state` itself.

    A command's id follows from (run, number of the event, index), so that the same event on the same
    state always asks for the same things by the same names.
    """
    if state.is_finished:
        return state, []
    work = _Step(state, event.at)
    match event:
        case Started():
            work.start()
        case Begun():
            work.begun(event)
        case Result():
            work.result(event)
        case Failed():
            work.failed(event)
        case Vanished():
            work.vanished(event)
        case SendBack():
            work.send_back(event)
        case Timer():
            work.timer(event)
        case Planned():
            work.planned(event)
        case Cancel():
            work.cancel(event.reason)
    return work.outcome()


class _Step:
    """The scratch paper of one step: copies of what changes, and the commands so far."""

    def __init__(self, state: RunState, at: float) -> None:
        self._before = state
        self._at = at
        self._header = msgspec.structs.replace(state.header, seq=state.header.seq + 1)
        self._rows = dict(state.rows)
        self._graph = state.graph
        self._commands: list[Command] = []
        self._is_changed = False
        self._answered = ""
        """The message whose answer this event is."""
        self._dropped: list[str] = []
        """Messages that are with workers, or on their way, and whose answers nobody waits for any more."""

    def outcome(self) -> tuple[RunState, list[Command]]:
        if not self._is_changed:
            return self._before, []
        status, unwanted = self._header.status, tuple(self._dropped)
        # Of a cancelled run nothing may begin: also not the message of finished work, which can be delivered again.
        if unwanted or (status == "cancelled" and any(row.attempt for row in self._rows.values())):
            everything = status in ("failed", "cancelled")
            self._commands.append(Stop(id=self._next_id(), messages=() if everything else unwanted))
        return RunState(self._header, self._rows, self._graph), self._commands

    def start(self) -> None:
        if self._header.status != "new":
            return
        self._set_header(status="running", started_at=self._at)
        if self._header.timeout_s is not None:
            self._set_header(timer=self._set_timer("", self._header.timeout_s))
        if self._rows:
            self._advance(self._rows)
        elif self._header.plans_left:
            self._ask_for_plan(())
        else:
            self._end()

    def begun(self, event: Begun) -> None:
        """Its time counts from the first start: one that comes again after a crash has what is left."""
        row = self._current(event.subtask, event.version, event.attempt)
        if row is not None and row.spec.timeout_s is not None and not row.timer:
            self._set(row, timer=self._set_timer(row.spec.name, row.spec.timeout_s))

    def result(self, event: Result) -> None:
        row = self._answer_of(event)
        if row is None:
            return
        try:
            is_new_version = self._grow(row, event.subtasks)
        except InvalidPlan as error:
            self._fail(row, f"its result was refused: {error}", event.output)
            return
        self._set(row, status="done", output=event.output, ended_at=self._at, timer=0)
        if is_new_version:  # a pattern may now stand for more, or for fewer: everybody who waits looks again
            self._advance(self._rows)
        else:
            self._advance(self._graph.before[row.spec.name], only_done=True)

    def failed(self, event: Failed) -> None:
        row = self._answer_of(event)
        if row is not None:
            self._fail(row, event.error)

    def timer(self, event: Timer) -> None:
        row = self._rows.get(event.subtask)
        if not event.subtask and event.generation == self._header.timer:
            self._stop("failed", f"the run did not end within {self._header.timeout_s} s")
        elif row is not None and row.status == "running" and row.timer == event.generation:
            self._fail(row, f"no result within {row.spec.timeout_s} s of its start")

    def cancel(self, reason: str) -> None:
        self._stop("cancelled", reason)

    def _stop(self, status: RunStatus, why: str) -> None:
        for row in list(self._rows.values()):
            if row.is_open:
                self._set(row, status="cancelled", error=why, ended_at=self._at, timer=0)
        self._finish(status, why)

    def planned(self, event: Planned) -> None:
        if not self._header.planning or event.command != self._header.planning:
            return
        self._set_header(planning="")
        try:
            if event.error:
                raise InvalidPlan(event.error)
            self._replace_open(event)
        except InvalidPlan as error:
            bad = [row for row in self._rows.values() if row.status == "failed"]
            self._finish("failed", "; ".join(filter(None, (f"no plan: {error}", _summary(bad)))))
        else:
            self._advance(self._rows)

    def _replace_open(self, event: Planned) -> None:
        """What is done stays; the new subtasks take the place of all others."""
        errors: list[str] = []
        specs = read_subtasks(event.subtasks or [], errors)
        if errors:
            raise InvalidPlan("; ".join(errors))
        done = [row for row in self._rows.values() if row.status == "done"]
        attempts = {name: row.attempt for name, row in self._rows.items()}
        added = [Row(spec=spec, attempt=attempts.get(spec.name, 0)) for spec in specs]
        known = tuple(sorted({*self._header.capabilities, *event.capabilities}))
        specs = [row.spec for row in (*done, *added)]
        graph = checked_graph(specs, known)
        self._header.limits.check(specs)
        self._graph = graph
        self._rows = {row.spec.name: row for row in (*done, *added)}
        self._set_header(version=self._header.version + 1, capabilities=known)
        if event.facts or event.guesses:  # a model that says nothing of them has learned nothing
            self._set_header(facts=event.facts, guesses=event.guesses)

    def _ask_for_plan(self, errors: Sequence[str]) -> None:
        command = MakePlan(id=self._next_id(), errors=tuple(errors))
        self._commands.append(command)
        finished = sum(row.status == "done" for row in self._rows.values())
        self._set_header(planning=command.id, plans_left=self._header.plans_left - 1, finished_before=finished)

    def vanished(self, event: Vanished) -> None:
        """Sent anew as another attempt: should the old message be found after all, its answer does not count."""
        row = self._current(event.subtask, event.version, event.attempt)
        if row is None:
            return
        if row.resends >= MAX_RESENDS:
            self._fail(row, "its message has vanished: neither waiting, nor with a worker, nor among the dead letters")
        else:
            self._drop(row)
            self._set(row, resends=row.resends + 1)
            self._dispatch(self._rows[row.spec.name])

    def send_back(self, event: SendBack) -> None:
        reviewer = self._answer_of(event)
        if reviewer is None:
            return
        target = self._rows.get(event.target)
        if target is None or event.target not in self._graph.ancestors(event.subtask):
            self._fail(reviewer, f'it sent back "{event.target}", on which it does not depend', event.output)
        elif target.send_backs >= MAX_SEND_BACKS:
            why = f'it sent back "{event.target}" more than {MAX_SEND_BACKS} times; last feedback: {event.feedback}'
            self._fail(reviewer, why, event.output)
        else:
            for name in self._graph.descendants(event.target):
                self._again(self._rows[name], feedback=None)
            self._again(target, feedback=event.feedback, send_backs=target.send_backs + 1)
            self._advance([event.target])

    def _again(self, row: Row, **changes: Any) -> None:
        self._set(row, status="waiting", output=None, error="", timer=0, ended_at=0.0, **changes)

    def _answer_of(self, event: Result | Failed | SendBack) -> Row | None:
        """The row that a worker's answer is about, if it is still waited for."""
        row = self._current(event.subtask, event.version, event.attempt)
        if row is not None:
            self._answered = row.message_id
        return row

    def _current(self, name: str, version: int, attempt: int) -> Row | None:
        row = self._rows.get(name)
        if row is None or row.status != "running" or (row.version, row.attempt) != (version, attempt):
            return None
        return row

    def _fail(self, row: Row, error: str, output: Any = None) -> None:
        self._set(row, status="failed", error=error, output=output, ended_at=self._at, timer=0)
        self._advance(self._graph.before[row.spec.name])

    def _grow(self, maker: Row, raw: Any) -> bool:
        """Let the subtasks that `maker` returned take the place of those it returned before.

        One that is the same as before stays as it is, so that finished work is not done again.
        """
        outdated = self._made_by(maker.spec.name) if maker.attempt > 1 else {}
        if not raw and not outdated:
            return False
        errors: list[str] = []
        specs = read_subtasks(raw or [], errors)
        if len({spec.name for spec in specs}) < len(specs):
            errors.append("two of the subtasks have one name")
        if errors:
            raise InvalidPlan("; ".join(errors))
        kept = {spec.name for spec in specs if (old := outdated.get(spec.name)) is not None and old.spec == spec}
        removed = self._with_what_they_made(outdated.keys() - kept)
        rows = [row for name, row in self._rows.items() if name not in removed]
        # The attempts go on counting, so that no answer to an earlier one of the same name fits.
        attempts = {name: self._rows[name].attempt for name in removed}
        added = [
            Row(spec=spec, made_by=maker.spec.name, attempt=attempts.get(spec.name, 0))
            for spec in specs
            if spec.name not in kept
        ]
        if not added and not removed:
            return False
        planned = [row.spec for row in (*rows, *added)]
        graph = checked_graph(planned, self._header.capabilities)
        self._header.limits.check(planned)
        self._graph = graph  # nothing has changed if it was refused
        for name in removed:
            self._drop(self._rows[name])
        self._rows = {row.spec.name: row for row in (*rows, *added)}
        for row in rows:
            if row.status == "skipped":  # what kept it from running may be gone
                self._again(row)
        self._set_header(version=self._header.version + 1)
        return True

    def _made_by(self, maker: str) -> dict[str, Row]:
        return {name: row for name, row in self._rows.items() if row.made_by == maker}

    def _with_what_they_made(self, names: Iterable[str]) -> set[str]:
        gone: set[str] = set()
        waiting = list(names)
        while waiting:
            name = waiting.pop()
            if name not in gone:
                gone.add(name)
                waiting.extend(self._made_by(name))
        return gone

    def _advance(self, names: Iterable[str], *, only_done: bool = False) -> None:
        """Send those among `names` that can run now; skip those that never can, and theirs in turn.

        `only_done`: nothing but a subtask's good end has happened, so nobody has become impossible.
        """
        ready: list[Row] = []
        looked_at = list(dict.fromkeys(names))
        for name in looked_at:  # grows while it is walked
            row = self._rows[name]
            if row.status != "waiting":
                continue
            obstacle = self._obstacle(row, only_done)
            if obstacle is None:
                ready.append(row)
            elif not obstacle.is_open:
                why = f'its dependency "{obstacle.spec.name}" {obstacle.status}: {obstacle.error}'
                self._set(row, status="skipped", error=why, ended_at=self._at)
                looked_at.extend(self._graph.before[name])
        ready.sort(key=lambda row: -row.spec.priority)  # stable: else as in the plan
        for row in {row.spec.name: row for row in ready}.values():
            self._dispatch(row)
        is_idle = self._header.status == "running" and not self._header.planning
        if is_idle and not any(row.is_open for row in self._rows.values()):
            self._end()

    def _obstacle(self, row: Row, only_done: bool) -> Row | None:
        """A dependency that keeps this one from running: one that will never be done goes before others."""
        pending = None
        for name in self._graph.after[row.spec.name]:
            dependency = self._rows[name]
            if dependency.status == "done":
                continue
            if only_done or not dependency.is_open:
                return dependency
            pending = dependency
        return pending

    def _dispatch(self, row: Row) -> None:
        command = Dispatch(
            id=self._next_id(),
            subtask=row.spec.name,
            version=self._header.version,
            attempt=row.attempt + 1,
            capability=row.spec.assigned_to,
            priority=row.spec.priority,
        )
        self._commands.append(command)
        self._set(
            row,
            status="running",
            version=command.version,
            attempt=command.attempt,
            message_id=command.id,
            timer=0,
            sent_at=self._at,
        )

    def _set_timer(self, subtask: str, timeout_s: float) -> int:
        generation = self._header.timers + 1
        self._set_header(timers=generation)
        due_at = self._at + timeout_s
        self._commands.append(SetTimer(id=self._next_id(), subtask=subtask, generation=generation, due_at=due_at))
        return generation

    def _end(self) -> None:
        bad = [row for row in self._rows.values() if row.status == "failed"]
        if bad and self._header.plans_left and self._goes_on():
            self._ask_for_plan([f'"{row.spec.name}" ({row.spec.assigned_to}) failed: {row.error}' for row in bad])
        else:
            stalled = f"{self._header.stalls} plans in a row have finished nothing; " if self._has_stalled() else ""
            self._finish("failed" if bad else "done", stalled + _summary(bad))

    def _goes_on(self) -> bool:
        """Note whether the plan that has failed has finished anything; False: there is no point in another."""
        finished = sum(row.status == "done" for row in self._rows.values())
        self._set_header(stalls=0 if finished > self._header.finished_before else self._header.stalls + 1)
        return not self._has_stalled()

    def _has_stalled(self) -> bool:
        return self._header.stalls > self._header.limits.stalls

    def _finish(self, status: RunStatus, reason: str) -> None:
        self._set_header(status=status, reason=reason, ended_at=self._at)
        self._commands.append(Finish(id=self._next_id(), status=status, reason=reason))

    def _next_id(self) -> str:
        return derived_id("run", self._header.run, self._header.seq, len(self._commands))

    def _drop(self, row: Row) -> None:
        if row.status == "running" and row.message_id != self._answered:
            self._dropped.append(row.message_id)

    def _set(self, row: Row, **changes: Any) -> None:
        if changes.get("status", "running") != "running":
            self._drop(row)
        self._rows[row.spec.name] = msgspec.structs.replace(row, **changes)
        self._is_changed = True

    def _set_header(self, **changes: Any) -> None:
        self._header = msgspec.structs.replace(self._header, **changes)
        self._is_changed = True


def _summary(bad: Sequence[Row]) -> str:
    shown = [f'"{row.spec.name}" failed: {row.error}' for row in bad[:3]]
    if len(bad) > len(shown):
        shown.append(f"and {len(bad) - len(shown)} more")
    return "; ".join(shown)
