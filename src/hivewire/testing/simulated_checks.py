"""The coordinator's promises, checked on what a simulation left behind."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator
from itertools import pairwise

from hivewire.rules.plan_state import Row, RunState
from hivewire.testing.simulated_program import COORDINATORS, LEASE_S, RUNS, TEAM, Start
from hivewire.testing.simulated_run import Result

_MAY_FAIL = ("reject", "hang")


def violations(result: Result) -> list[str]:
    """Every broken promise in one line each; empty when all hold."""
    checks = (
        _errors,
        _everything_ends,
        _nothing_is_left,
        _nothing_vanishes,
        _outcomes,
        _results,
        _outputs,
        _recorded_once,
        _log_is_whole,
        _dependencies_come_first,
        _one_message_an_attempt,
        _finished_work_rests,
        _nothing_after_cancel,
        _watchers,
        _planned_once,
        _the_ledger_agrees,
    )
    return [f"{check.__name__.strip('_')}: {line}" for check in checks for line in check(result)]


def _errors(result: Result) -> Iterator[str]:
    yield from result.book.errors
    for letter in result.world.letters:
        if letter.queue not in TEAM or letter.letter.reason != "rejected":
            yield f"{letter.record.id} is dead in {letter.queue}: {letter.letter.reason} {letter.letter.error}"


def _everything_ends(result: Result) -> Iterator[str]:
    if len(result.states) < RUNS:
        yield f"only {sorted(result.states)} were accepted"
    for run, state in result.states.items():
        if not state.is_finished:
            rows = {name: row.status for name, row in state.rows.items() if row.is_open}
            yield f"{run} has not ended: {rows}, planning {state.header.planning!r}"


def _nothing_is_left(result: Result) -> Iterator[str]:
    for place, count in result.left.items():
        yield f"{count} in {place}"


def _nothing_vanishes(result: Result) -> Iterator[str]:
    """What nobody has taken away is where it belongs: it is never sent anew because it was nowhere."""
    for run, state in result.states.items():
        for name, row in state.rows.items():
            if row.resends:
                yield f"{run}/{name} was sent anew {row.resends} times"


def _start_of(result: Result, run: str) -> Start:
    steps = (*result.program.steps, result.program.spare)
    return next(step for step in steps if isinstance(step, Start) and step.run == run)


def _outcomes(result: Result) -> Iterator[str]:
    """Each subtask ended as its handler and its dependencies say, and each run as its subtasks."""
    for run, state in result.states.items():
        status, reason = state.header.status, state.header.reason
        if status == "cancelled":
            if run not in result.ledgerbook.cancelled:
                yield f"{run} was cancelled, and nobody wanted it"
            continue
        is_late = reason.startswith("the run did not end within") and _start_of(result, run).timeout_s is not None
        if is_late:
            continue
        failed = [name for name, row in state.rows.items() if row.status == "failed"]
        if status != ("failed" if failed else "done"):
            yield f"{run} ended as {status} ({reason}) with {failed} failed"
        if failed and state.header.plans_left:
            yield f"{run} failed, and {state.header.plans_left} plans are left"
        for name, row in state.rows.items():
            yield from _outcome(result, run, state, name, row)


def _outcome(result: Result, run: str, state: RunState, name: str, row: Row) -> Iterator[str]:
    deed = result.program.deeds[run].get(name, "ok")
    before = {state.rows[other].status for other in state.graph.after[name]}
    if before <= {"done"}:
        allowed = {"failed"} if deed == "reject" else {"done", "failed"} if deed in _MAY_FAIL else {"done"}
    else:
        allowed = {"skipped"}
    if row.status not in allowed:
        yield f"{run}/{name} ({deed}) is {row.status} ({row.error}) after {sorted(before)}, not {sorted(allowed)}"


def _results(result: Result) -> Iterator[str]:
    """Whoever asked was told what the ledger has."""
    told = {"done": "completed", "failed": "failed", "cancelled": "cancelled"}
    answers = [(run, each) for run, found in result.ledgerbook.results.items() for each in found]
    for run, answer in answers + [(run, answer) for run, (_, answer) in result.ledgerbook.cancelled.items()]:
        state = result.states[run]
        rows = {name: row.output for name, row in state.rows.items() if row.status == "done"}
        if (answer.status, answer.output) != (told.get(state.header.status), rows):
            yield f"{run}: somebody was told {answer.status} with {sorted(answer.output)}; it is {state.header.status}"


def _outputs(result: Result) -> Iterator[str]:
    """The output of a subtask is that of its latest attempt, and has seen those of its dependencies."""
    for run, state in result.states.items():
        for name, row in state.rows.items():
            if row.status != "done":
                continue
            output = row.output
            if output["mark"] != f"{run}/{name}/{row.attempt}":
                yield f"{run}/{name} has the output {output['mark']} at attempt {row.attempt}"
            rows = [(other, state.rows[other]) for other in state.graph.after[name]]
            wanted = {other: each.output["mark"] for other, each in rows if each.status == "done"}
            if output["saw"] != wanted and all(each.status == "done" for _, each in rows):
                yield f"{run}/{name} saw {output['saw']}, and there was {wanted}"


def _recorded_once(result: Result) -> Iterator[str]:
    """The history has one completion for each attempt that ended well; never one after another."""
    for run, tasks in result.histories.items():
        for name, entries in tasks.items():
            told = [str(entry.status) for entry in entries]
            if any(pair == ("completed", "completed") for pair in pairwise(told)):
                yield f"{run}/{name} was completed twice: {told}"
            done = sum(
                entry.body.get("subtask") == name and entry.body.get("status") == "done" for entry in result.logs[run]
            )
            # An attempt that was done and sent back in one step was never shown as completed.
            if told.count("completed") > done:
                yield f"{run}/{name}: {done} times done in the log, {told.count('completed')} in the ledger"


def _log_is_whole(result: Result) -> Iterator[str]:
    for run, entries in result.logs.items():
        if [entry.number for entry in entries] != list(range(1, len(entries) + 1)):
            yield f"{run}: the log has the numbers {[entry.number for entry in entries]}"
        ends = [entry.body for entry in entries if entry.body["type"] == "run" and entry.body["status"] != "running"]
        if result.states[run].is_finished and (len(ends) != 1 or entries[-1].body != ends[0]):
            yield f"{run}: the log tells of the ends {ends}"


def _dependencies_come_first(result: Result) -> Iterator[str]:
    """A subtask is sent when all that it waits for is done, once for each attempt, and is done once in each."""
    for run, entries in result.logs.items():
        state, done = result.states[run], set[str]()
        seen: Counter[tuple[str, int, str]] = Counter()
        for entry in entries:
            if entry.body["type"] != "subtask":
                continue
            name, status, attempt = entry.body["subtask"], entry.body["status"], entry.body["attempt"]
            seen[name, attempt, status] += 1
            (done.add if status == "done" else done.discard)(name)
            missing = set(state.graph.after.get(name, ())) - done
            if status == "running" and name in state.rows and attempt == state.rows[name].attempt and missing:
                yield f"{run}/{name} was sent before {sorted(missing)}"
        for (name, attempt, status), count in seen.items():
            if count > 1 and status in ("running", "done"):
                yield f"{run}/{name}: attempt {attempt} was {status} {count} times"


def _one_message_an_attempt(result: Result) -> Iterator[str]:
    ids: dict[tuple[str, str, int], set[str]] = defaultdict(set)
    for each in result.ledgerbook.handled:
        ids[each.run, each.subtask, each.attempt].add(each.id)
    for what, found in ids.items():
        if len(found) > 1:
            yield f"{what} went out as {len(found)} messages"
    places: dict[str, set[str]] = defaultdict(set)
    for happening in result.world.history:
        if happening.what == "stored" and happening.queue in TEAM:
            places[happening.id].add(happening.queue)
    for id, queues in places.items():
        if len(queues) > 1:
            yield f"{id} was sent to {sorted(queues)}"


def _finished_work_rests(result: Result) -> Iterator[str]:
    """A handler starts again only where a fault has left its message unsettled."""
    starts = Counter((each.id, each.process) for each in result.ledgerbook.handled)
    lasting = {each.id for each in result.ledgerbook.handled if each.ended_at is None}
    again = 0
    for (id, _), count in starts.items():
        again += count - 1 if id not in lasting else 0
    again += len({id for id, _ in starts} and [id for id, n in Counter(id for id, _ in starts).items() if n > 1])
    if again > 8 * len(result.struck):
        yield f"{again} handlers started again after {len(result.struck)} faults"


def _nothing_after_cancel(result: Result) -> Iterator[str]:
    """No subtask begins after `cancel` has returned."""
    for run, (at, answer) in result.ledgerbook.cancelled.items():
        for each in result.ledgerbook.handled:
            if answer.status == "cancelled" and each.run == run and each.began_at > at:
                yield f"{run}/{each.subtask} began {each.began_at - at:.3f} s after its run was cancelled"


def _watchers(result: Result) -> Iterator[str]:
    """Whoever read the events, from whatever coordinator, read all of them in their order."""
    for seen in result.ledgerbook.seen:
        if seen.is_whole and seen.entries != result.logs[seen.run]:
            numbers = [entry.number for entry in seen.entries]
            yield f"{seen.run}: somebody read {numbers} of {len(result.logs[seen.run])}"


def _planned_once(result: Result) -> Iterator[str]:
    """The model is asked by one coordinator at a time, and again only when a fault has struck that one."""
    asked = Counter((each.run, each.version) for each in result.ledgerbook.asked if each.answered_at is not None)
    for what, count in asked.items():
        if count > 1 + sum(fault.slot in (None, *range(COORDINATORS)) for fault in result.struck):
            yield f"{what} was planned {count} times"
    calls = sorted(result.ledgerbook.asked, key=lambda each: each.at)
    for one, other in ((one, other) for n, one in enumerate(calls) for other in calls[n + 1 :]):
        same = (one.run, one.version) == (other.run, other.version) and one.process != other.process
        # One that was stopped may ask a moment later than it had the right to; its answer is refused.
        thawed = any(
            outage.process in (one.process, other.process) and (outage.ended_at or 0.0) > one.at - LEASE_S
            for outage in result.book.outages
        )
        if same and not thawed and one.answered_at and other.at < min(one.answered_at, one.at + LEASE_S * 0.9):
            yield f"{one.run}: {one.process} and {other.process} asked for plan {one.version} at the same time"


def _the_ledger_agrees(result: Result) -> Iterator[str]:
    """The tasks that people look at tell the same as the run."""
    told = {"done": "completed", "failed": "failed", "skipped": "cancelled", "cancelled": "cancelled"}
    for run, state in result.states.items():
        for name, row in state.rows.items():
            entries = result.histories[run][name]
            last = str(entries[-1].status) if entries else "nothing"
            if not row.is_open and last != told[row.status]:
                yield f"{run}/{name} is {row.status}, its task {last}"
