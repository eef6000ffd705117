"""Runs of plans in a ledger, each operation as a script: what happened and what must be sent, in one transaction."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache
from typing import Any, Final

from hivewire.codec.names import split_address
from hivewire.coordination.ledger import run_log, run_outbox
from hivewire.coordination.ledger.rows import MOST_ID_BYTES, as_json, stored_error
from hivewire.coordination.ledger.store import Many, Query, Row, Script
from hivewire.errors import CoordinationError, MessageError
from hivewire.ids import derived_id
from hivewire.rules.plan_state import (
    UNFINISHED,
    Command,
    Incoming,
    KeptCommand,
    Planned,
    RunState,
    SetTimer,
    Stop,
    dump,
    load_command,
    load_header,
    load_row,
    load_state,
)
from hivewire.rules.plan_state import Row as SubtaskRow
from hivewire.rules.plan_step import step
from hivewire.rules.task_states import TaskStatus

Resolve = Callable[[RunState], Sequence[Incoming]]
"""The events for a run in this state; asked under its lock."""

_STATUS: Final = {
    "new": TaskStatus.PENDING,
    "waiting": TaskStatus.PENDING,
    "running": TaskStatus.IN_PROGRESS,
    "done": TaskStatus.COMPLETED,
    "failed": TaskStatus.FAILED,
    "skipped": TaskStatus.CANCELLED,
    "cancelled": TaskStatus.CANCELLED,
}
_TASK: Final = (
    "INSERT INTO tasks (id, name, description, priority, assigned_to, created_by, parent_id, dependencies, input, "
    "output, status, error, change, version, created_at, updated_at, completed_at) "
    "VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, 1, hivewire_begun(), hivewire_begun(), $14) "
    "ON CONFLICT (id) DO UPDATE SET description = excluded.description, priority = excluded.priority, "
    "assigned_to = excluded.assigned_to, dependencies = excluded.dependencies, input = excluded.input, "
    "status = excluded.status, output = excluded.output, error = excluded.error, change = excluded.change, "
    "version = tasks.version + 1, updated_at = excluded.updated_at, completed_at = excluded.completed_at "
    "WHERE tasks.status <> excluded.status"
)


def create(state: RunState, first: Incoming) -> Script[RunState | None]:
    """Keep a new run and let it begin; None when there is a run of this id already."""
    head = state.header
    if not head.run or len(head.run.encode()) > MOST_ID_BYTES:
        raise CoordinationError(f"a run's id is text of 1 to {MOST_ID_BYTES} bytes")
    try:
        split_address(f"coordinator/{head.run}")
    except MessageError as error:  # its answers would never arrive
        raise CoordinationError(f"a run's id is part of an address: {error}") from None
    made = yield Query(
        "INSERT INTO tasks (id, name, description, input, status, change, version, created_at, updated_at) "
        "SELECT CAST($1 AS text), CAST($2 AS text), CAST($3 AS text), CAST($4 AS json), 'in_progress', 'run', 1, "
        "hivewire_begun(), hivewire_begun() WHERE 1 = 1 ON CONFLICT (id) DO NOTHING RETURNING id",
        [head.run, head.name or "run", stored_error(head.description), as_json(head.input)],
    )
    if not made:
        return None
    yield Query(
        "INSERT INTO runs (run, name, status, seq, logged, created_at, header) "
        "VALUES ($1, $2, $3, $4, 0, hivewire_begun(), $5)",
        [head.run, head.name, head.status, head.seq, _text(dump(head))],
    )
    yield from _store_rows(None, state)
    after, _, _ = yield from apply(head.run, lambda _: [first], state)
    return after


def apply(
    run: str, resolve: Resolve, cached: RunState | None = None
) -> Script[tuple[RunState, list[Command], RunState]]:
    """Take in the events that are new, step through them, store what follows; the state after, the commands, and the
    state before. A run that is finished takes nothing."""
    before = yield from _locked(run, cached)
    if before.is_finished:
        return before, [], before
    incoming = yield from _new_ones(run, resolve(before))
    state, commands = before, list[Command]()
    entries: list[tuple[float, dict[str, Any]]] = []
    timers: list[tuple[SetTimer, float]] = []
    for each in incoming:
        earlier, (state, follow) = state, step(state, each.event)
        entries += [(each.event.at, entry) for entry in run_log.told(earlier, state)]
        yield from _store_commands(state, follow, each)
        timers += [(command, command.due_at - each.event.at) for command in follow if isinstance(command, SetTimer)]
        commands += follow
    if state is before:
        return state, commands, before
    head = state.header
    rows = yield Query(
        "UPDATE runs SET status = $2, seq = $3, header = $4, logged = logged + $5 WHERE run = $1 RETURNING logged",
        [run, head.status, head.seq, _text(dump(head)), len(entries)],
    )
    yield from run_log.add(run, rows[0][0] - len(entries), entries)
    yield from _store_rows(before, state)
    yield from _store_timers(state, timers)
    if state.is_finished:
        yield from _finish(state)
    return state, commands, before


def _locked(run: str, cached: RunState | None) -> Script[RunState]:
    rows = yield Query("SELECT seq, header FROM runs WHERE run = $1 FOR UPDATE", [run])
    if not rows:
        raise CoordinationError(f"there is no run {run!r:.300} in the ledger")
    return (yield from _state(run, rows[0], cached))


def load(run: str, cached: RunState | None = None) -> Script[RunState]:
    """One state, and not the header of one with the rows of the next: no lock is held between the statements."""
    while True:
        rows = yield Query("SELECT seq, header FROM runs WHERE run = $1", [run])
        if not rows:
            raise CoordinationError(f"there is no run {run!r:.300} in the ledger")
        state = yield from _state(run, rows[0], cached)
        if state is cached:
            return state
        now = yield Query("SELECT seq FROM runs WHERE run = $1", [run])
        if now and now[0][0] == rows[0][0]:
            return state


def _state(run: str, row: Row, cached: RunState | None) -> Script[RunState]:
    if cached is not None and cached.header.seq == row[0]:
        return cached  # nobody else has changed it
    header = row[1].encode()
    load_header(header)  # before the rows: newer code may have written those otherwise, too
    rows = yield Query("SELECT body FROM run_subtasks WHERE run = $1 ORDER BY place", [run])
    return load_state(header, (body.encode() for (body,) in rows))


def _new_ones(run: str, incoming: Sequence[Incoming]) -> Script[list[Incoming]]:
    """Those whose id was not taken in before, the first of each id."""
    by_id = {each.id: each for each in reversed(incoming)}
    fresh = yield from _unseen(run, by_id)
    return [each for each in incoming if each.id in fresh and by_id[each.id] is each]


def _unseen(run: str, ids: Iterable[str]) -> Script[set[str]]:
    """Note these ids in the inbox; returns those that were not there."""
    found: set[str] = set()
    wanted = list(ids)
    for start in range(0, len(wanted), 500):
        part = wanted[start : start + 500]
        places = ", ".join(f"($1, ${number})" for number in range(2, len(part) + 2))
        rows = yield Query(
            f"INSERT INTO run_inbox (run, id) VALUES {places} ON CONFLICT (run, id) DO NOTHING RETURNING id",
            [run, *part],
        )
        found.update(name for (name,) in rows)
    return found


def _store_commands(state: RunState, commands: Sequence[Command], cause: Incoming) -> Script[None]:
    head = state.header
    if isinstance(cause.event, Planned):  # its question is answered
        yield Query("DELETE FROM run_outbox WHERE run = $1 AND id = $2", [head.run, cause.event.command])
    sent = [
        (head.run, head.seq, place, command.id, _text(dump(command)))
        for place, command in enumerate(commands)
        if isinstance(command, KeptCommand)
    ]
    if sent:
        yield Many(
            "INSERT INTO run_outbox (run, seq, place, id, recipient, body, created_at) "
            "VALUES ($1, $2, $3, $4, '', $5, hivewire_begun())",
            sent,
        )


def _store_timers(state: RunState, timers: Iterable[tuple[SetTimer, float]]) -> Script[None]:
    """Those that still count after all events of this call, by the seconds until they go off. They do so by the
    store's clock: those of two coordinators may differ."""
    head = state.header

    def is_current(timer: SetTimer) -> bool:
        holder = state.rows.get(timer.subtask) if timer.subtask else head
        return holder is not None and holder.timer == timer.generation

    kept = [(head.run, t.subtask, t.generation, after_s) for t, after_s in timers if is_current(t)]
    if kept:
        yield Many(
            "INSERT INTO run_timers (run, subtask, generation, due_at) VALUES ($1, $2, $3, hivewire_begun() + $4) "
            "ON CONFLICT (run, subtask) DO UPDATE SET generation = excluded.generation, due_at = excluded.due_at",
            kept,
        )


def _store_rows(before: RunState | None, state: RunState) -> Script[None]:
    """What has changed: the rows, and the tasks that people look at."""
    run = state.header.run
    old = {} if before is None else before.rows
    is_same_plan = before is not None and before.header.version == state.header.version
    places = {} if is_same_plan else {name: place for place, name in enumerate(old)}
    gone = [(run, name) for name in old.keys() - state.rows.keys()]
    if gone:
        yield Many("DELETE FROM run_subtasks WHERE run = $1 AND name = $2", gone)
    over = [(run, name) for name, row in state.rows.items() if not row.timer and name in old and old[name].timer]
    if gone or over:
        yield Many("DELETE FROM run_timers WHERE run = $1 AND subtask = $2", [*gone, *over])
    rows = [
        (run, name, place, row.status, _text(dump(row)))
        for place, (name, row) in enumerate(state.rows.items())
        if old.get(name) is not row or not (is_same_plan or places[name] == place)
    ]
    if rows:
        yield Many(
            "INSERT INTO run_subtasks (run, name, place, status, body) VALUES ($1, $2, $3, $4, $5) "
            "ON CONFLICT (run, name) DO UPDATE SET place = excluded.place, status = excluded.status, "
            "body = excluded.body",
            rows,
        )
    changed = [_task_row(run, row) for name, row in state.rows.items() if _is_news(old.get(name), row)]
    removed = [(task_id(run, name),) for _, name in gone]
    if removed:
        yield Many("DELETE FROM tasks WHERE id = $1", removed)
    if changed:
        yield Many(_TASK, changed)


def _is_news(old: SubtaskRow | None, row: SubtaskRow) -> bool:
    """A task is written when its status changes: who looks at it sees nothing else of what a row keeps."""
    return old is None or (old is not row and _STATUS[old.status] is not _STATUS[row.status])


@lru_cache(maxsize=10_000)
def task_id(run: str, subtask: str) -> str:
    """The id under which the ledger's tasks have a subtask."""
    return derived_id("subtask", run, subtask)


def _task_row(run: str, row: SubtaskRow) -> tuple[Any, ...]:
    spec = row.spec
    ended = row.ended_at if not row.is_open else None
    return (
        task_id(run, spec.name),
        spec.name,
        stored_error(spec.description),
        spec.priority,
        stored_error(spec.assigned_to),
        "coordinator",
        run,
        as_json(spec.dependencies),
        as_json(spec.input),
        as_json(row.output),
        _STATUS[row.status].value,
        stored_error(row.error),
        row.message_id,
        ended,
    )


def _finish(state: RunState) -> Script[None]:
    """It takes no event any more, known or not; nothing more is to be sent or planned, only to be stopped."""
    head = state.header
    kept = yield Query("SELECT seq, place, body FROM run_outbox WHERE run = $1", [head.run])
    yield from run_outbox.sent(
        head.run, [(seq, n) for seq, n, body in kept if not isinstance(load_command(body.encode()), Stop)]
    )
    for table in ("run_inbox", "run_timers"):
        yield Query(f"DELETE FROM {table} WHERE run = $1", [head.run])
    outputs = {name: row.output for name, row in state.rows.items() if row.status == "done"}
    yield Query(
        "UPDATE tasks SET status = $2, error = $3, output = $4, version = version + 1, updated_at = hivewire_now(), "
        "completed_at = hivewire_now() WHERE id = $1",
        [head.run, _STATUS[head.status].value, stored_error(head.reason), as_json(outputs)],
    )


def note(run: str, notes: Sequence[tuple[str, float, dict[str, Any]]]) -> Script[None]:
    """Add what a handler tells to the log, by (id, time, body); an id that was noted before is left out."""
    rows = yield Query("SELECT logged, status FROM runs WHERE run = $1 FOR UPDATE", [run])
    if not rows or rows[0][1] not in UNFINISHED:
        return
    fresh = yield from _unseen(run, [name for name, _, _ in notes])
    entries = [(at, body) for name, at, body in notes if name in fresh]
    if entries:
        yield Query("UPDATE runs SET logged = logged + $2 WHERE run = $1", [run, len(entries)])
        yield from run_log.add(run, rows[0][0], entries)


def decided(
    run: str, limit: int, after: tuple[int, int], cached: RunState | None
) -> Script[tuple[list[run_outbox.Kept], RunState | None]]:
    """What is in the outbox, and the state of the run where there is something to be sent."""
    kept = yield from run_outbox.read(run, limit, after)
    return kept, (yield from load(run, cached)) if kept else None


def overdue() -> Script[list[tuple[str, str, int]]]:
    """(run, subtask, generation) of the timers that have gone off. They stay until a step has dealt with them."""
    rows = yield Query(
        "SELECT run, subtask, generation FROM run_timers WHERE due_at <= hivewire_begun() ORDER BY due_at LIMIT 500"
    )
    return [(run, subtask, generation) for run, subtask, generation in rows]


def waiting(older_than_s: float, after: str, limit: int) -> Script[tuple[list[tuple[str, str, int]], list[str]]]:
    """What is `overdue` and what is `left_behind`."""
    return (yield from overdue()), (yield from run_outbox.left_behind(older_than_s, after, limit))


def running(limit: int) -> Script[list[tuple[str, SubtaskRow]]]:
    """Subtasks that were sent and are not answered, with their runs; without those that are still to be sent."""
    unsent = yield Query(
        "SELECT o.run, o.id FROM runs r JOIN run_outbox o ON o.run = r.run WHERE r.status IN ('new', 'running')", []
    )
    rows = yield Query(
        "SELECT s.run, s.body FROM runs r JOIN run_subtasks s ON s.run = r.run "
        "WHERE r.status IN ('new', 'running') AND s.status = 'running' LIMIT $1",
        [limit],
    )
    waiting = {(run, name) for run, name in unsent}
    found = [(run, load_row(body.encode())) for run, body in rows]
    return [(run, row) for run, row in found if (run, row.message_id) not in waiting]


def drop(run: str) -> Script[None]:
    """All that there is of a run."""
    yield Query("DELETE FROM tasks WHERE id = $1 OR parent_id = $1", [run])


def unfinished(limit: int) -> Script[list[str]]:
    rows = yield Query("SELECT run FROM runs WHERE status IN ('new', 'running') ORDER BY created_at LIMIT $1", [limit])
    return [run for (run,) in rows]


def _text(stored: bytes) -> str:
    return stored.decode()
