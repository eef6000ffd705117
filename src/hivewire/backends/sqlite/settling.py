"""What became of records that were taken: running marks, settlements, and what is given back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from hivewire.backend import Again, Back, Dead, Fetched, Unfinished
from hivewire.backends.sqlite import letters
from hivewire.backends.sqlite.freeing import Change, end_run, move_heads, remembered
from hivewire.backends.sqlite.taking import Hold
from hivewire.backends.sqlite.transaction import Life, Transaction, name_of

if TYPE_CHECKING:
    from hivewire.backends.sqlite.consumer import SQLiteConsumer

_START = (
    "UPDATE lanes SET running = 1, counted = ?, starts = ?, failures = ?, crashes = ?, died = 0"
    " WHERE queue = ? AND key = ?"
)
_COUNT = (
    "UPDATE lanes SET running = 0, counted = ?, starts = ?, failures = ?, crashes = ?, died = ?,"
    " suspect_from = max(suspect_from, ?) WHERE queue = ? AND key = ?"
)
_NOT_STARTED = "UPDATE lanes SET starts = starts - 1, running = 0 WHERE queue = ? AND key = ?"


def start(transaction: Transaction, consumer: SQLiteConsumer, batch: Sequence[Fetched]) -> list[Fetched]:
    token = _token(transaction, consumer)
    refused: list[Fetched] = []
    rows = []
    for fetched in batch:
        seq = int(fetched.at)
        hold = consumer.out.get(seq) if token and fetched.token == token else None
        if hold is None:
            refused.append(fetched)
            continue
        transaction.undo.append(remembered(hold))
        hold.counted, hold.marked = seq, False
        rows.append((seq, fetched.starts, fetched.failures, fetched.crashes, consumer.queue, hold.key))
    transaction.db.executemany(_START, rows)
    return refused


def settle(
    transaction: Transaction, consumer: SQLiteConsumer, done: Sequence[Fetched], rest: Sequence[Unfinished]
) -> list[Fetched]:
    """Returns those refused because the lease had ended."""
    token = _token(transaction, consumer)
    out = consumer.out
    queue = transaction.queue(consumer.queue)
    run = _in_order(out, token, done)
    if run is not None and queue is not None and not rest and _is_rest_of(run, len(done)):
        queue.held -= len(done)
        queue.in_flight -= len(done)
        queue.dirty = True
        queue.settled += run.lives[run.place :]
        end_run(transaction, queue, out, run)
        return []
    changes: dict[int, Change] = {}
    transaction.undo.append((_put_in_again, out, changes))
    lives, refused = _finished(transaction, out, token, done, changes, run)
    for outcome in rest:
        fetched = outcome.fetched
        if fetched.token != token:
            refused.append(fetched)
            continue
        seq = int(fetched.at)
        hold = out.pop(seq, None)
        if hold is None:
            continue
        change = changes.get(hold.lane) or changes.setdefault(hold.lane, Change(transaction, hold))
        if isinstance(outcome, Dead):
            change.gone.append(seq)  # first: should the rest fail, it is put back
            letters.bury(transaction, consumer.queue_name, fetched.record, outcome.letter)
            lives.append(name_of(fetched.record))
        else:
            kept = change.kept = change.kept or []
            kept.append(seq)
            _keep(transaction, consumer.queue, hold, outcome)
    if queue is not None and changes:
        queue.held -= len(lives)
        queue.in_flight -= sum([len(change.gone) + len(change.kept) for change in changes.values()])
        queue.dirty = True
        queue.settled += lives
        move_heads(transaction, queue.id, out, list(changes.values()))
    return refused


def give_back(transaction: Transaction, consumer: SQLiteConsumer) -> None:
    """What the engine has not settled goes back unstarted."""
    out = consumer.out
    popped = dict(out)
    transaction.undo.append((out.update, popped))
    out.clear()
    queue = transaction.queue(consumer.queue)
    token = _token(transaction, consumer)
    if not token or token != consumer.out_token or queue is None:
        return  # it was of a life that is over, and may be with somebody else
    changes: dict[int, Change] = {}
    for seq, hold in popped.items():
        if hold.lane not in changes:
            changes[hold.lane] = Change(transaction, hold)
        if hold.marked and seq == hold.counted:  # the mark of the claim: its handler never started
            transaction.db.execute(_NOT_STARTED, (consumer.queue, hold.key))
        hold.keep(seq, 0.0)
    queue.in_flight -= len(popped)
    queue.dirty = True
    move_heads(transaction, queue.id, out, list(changes.values()))


def _token(transaction: Transaction, consumer: SQLiteConsumer) -> int:
    """The token whose holder may change what it holds; 0, which is nobody's, if the lease has ended."""
    membership = consumer.membership
    if not membership.has_lease(transaction):
        membership.lost(transaction)
    return membership.token


def _finished(
    transaction: Transaction,
    out: dict[int, Hold],
    token: int,
    done: Sequence[Fetched],
    changes: dict[int, Change],
    run: Hold | None,
) -> tuple[list[Life], list[Fetched]]:
    """Take them out of their runs. Returns the lives that have ended, and those refused. `run`: as `_in_order` says."""
    if run is not None:
        part = slice(run.place, run.place + len(done))
        changes[run.lane] = Change(transaction, run, run.seqs[part])
        for seq in run.seqs[part]:
            del out[seq]
        return run.lives[part], []
    refused: list[Fetched] = []
    lives: list[Life] = []
    change: Change | None = None
    for fetched in done:
        if fetched.token != token:
            refused.append(fetched)
            continue
        at: int = fetched.at  # type: ignore[assignment]  # ours are numbers
        hold = out.pop(at, None)
        if hold is None:  # it was settled before
            continue
        if change is None or change.hold is not hold:  # runs of one lane mostly come together
            change = changes.get(hold.lane) or changes.setdefault(hold.lane, Change(transaction, hold))
        change.gone.append(at)
        record = fetched.record
        lives.append(name_of(record) if record.replay else record.id)
    return lives, refused


def _in_order(out: Mapping[int, Hold], token: int, done: Sequence[Fetched]) -> Hold | None:
    """The run of which these records are the next ones, as they mostly are, and all still held.
    None: they are to be looked at one by one."""
    if not done or done[0].token != token:
        return None
    run = out.get(done[0].at)  # type: ignore[arg-type]  # ours are numbers
    if run is None or run.taken[run.place : run.place + len(done)] != done:
        return None
    if len(done) > 1 and not out.keys() >= set(run.seqs[run.place : run.place + len(done)]):
        return None
    return run


def _is_rest_of(run: Hold, number: int) -> bool:
    """Whether nothing is left of it after its next records, so many."""
    return run.place + number == len(run.seqs) and not run.has_holes and not run.kept


def _put_in_again(out: dict[int, Hold], changes: Mapping[int, Change]) -> None:
    for change in changes.values():
        out.update(dict.fromkeys((*change.gone, *change.kept), change.hold))


def _keep(transaction: Transaction, queue: int, hold: Hold, outcome: Again | Back) -> None:
    """It stays where it is, with the counters that the engine gave it."""
    fetched = outcome.fetched
    seq = int(fetched.at)
    again = isinstance(outcome, Again)
    died = 0 if again else fetched.died
    if again or seq == hold.counted or fetched.starts or fetched.failures or fetched.crashes:
        counters = (seq, fetched.starts, fetched.failures, fetched.crashes, died, seq + 1 if again else 0)
        transaction.db.execute(_COUNT, (*counters, queue, hold.key))
        hold.counted = seq
    hold.keep(seq, transaction.now + outcome.delay_s if isinstance(outcome, Again) else 0.0)
