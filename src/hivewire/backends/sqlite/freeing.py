"""Lanes after a settlement: their heads move on, and what is wholly settled is free again."""

from __future__ import annotations

from collections.abc import Sequence

from hivewire.backends.sqlite.schema import BLOCKED, RANK, READY
from hivewire.backends.sqlite.taking import NOTHING_KEPT, Hold
from hivewire.backends.sqlite.transaction import Queue, Transaction, Undo

_HEAD = (
    "UPDATE lanes SET data = iif(head = ?, data, NULL), head = ?, taken = ?, taken_to = ?, due_at = max(due_at, ?)"
    " WHERE queue = ? AND key = ?"
)
_DROP_PACKS = "DELETE FROM packs WHERE lane = ? AND first < ? AND last < ?"
_DROP_LANE = (
    "DELETE FROM lanes WHERE queue = ? AND key = ? AND NOT EXISTS (SELECT 1 FROM packs p WHERE p.lane = lanes.id)"
)
_LANE_IS_THERE = "SELECT 1 FROM lanes WHERE queue = ? AND key = ?"
_PACKS_FROM = "SELECT first, last FROM packs WHERE lane = ? AND last >= ? ORDER BY first"
_FREE = (
    f"UPDATE lanes SET state = CASE WHEN max(due_at, :due) > :now THEN {BLOCKED} ELSE {READY} END,"
    f" due_at = max(due_at, :due), data = iif(head = :head, data, NULL), head = :head, rank = {RANK.format(':head')},"
    " owner = NULL, taken = 0,"
    " taken_to = 0, running = 0 WHERE queue = :queue AND key = :key"
)
_GO_ON = (
    f"UPDATE lanes SET state = CASE WHEN due_at > ? THEN {BLOCKED} ELSE {READY} END, data = NULL,"
    " (head, rank) = (SELECT max(p.first, ?), -p.priority FROM packs p WHERE p.lane = lanes.id AND p.last >= ?"
    " ORDER BY p.first LIMIT 1), owner = NULL, taken = 0, taken_to = 0, running = 0"
    " WHERE queue = ? AND key = ? AND EXISTS (SELECT 1 FROM packs p WHERE p.lane = lanes.id AND p.last >= ?)"
)
"""A lane without holes, of which all is settled that is before a place."""
_DIG = "INSERT OR IGNORE INTO holes(lane, seq) VALUES (?, ?)"
_HAS_HOLES = "UPDATE lanes SET holes = 1 WHERE queue = ? AND key = ?"
_FILL = "DELETE FROM holes WHERE lane = ? AND seq < ?"
_IS_HOLE = "SELECT 1 FROM holes WHERE lane = ? AND seq = ?"
_END = 1 << 62


class Change:
    """What one settlement does to one lane."""

    __slots__ = ("gone", "hold", "kept")

    def __init__(self, transaction: Transaction, hold: Hold, gone: Sequence[int] = ()) -> None:
        transaction.undo.append(remembered(hold))
        self.hold = hold
        self.gone = list(gone)
        """Records of it that leave the lane."""
        self.kept: list[int] | tuple[()] = ()
        """Records of it that stay, and are not held any more."""


def remembered(hold: Hold) -> Undo:
    """What sets the run back to how it is now, should the transaction be rolled back."""
    return (
        _set_back,
        hold,
        hold.counted,
        hold.has_holes,
        hold.marked,
        hold.place,
        dict(hold.kept) if hold.kept else NOTHING_KEPT,
    )


def _set_back(hold: Hold, counted: int, has_holes: bool, marked: bool, place: int, kept: dict[int, float]) -> None:
    hold.counted, hold.has_holes, hold.marked, hold.place, hold.kept = counted, has_holes, marked, place, kept


def move_heads(transaction: Transaction, queue: int, out: dict[int, Hold], changes: Sequence[Change]) -> None:
    db = transaction.db
    ended: list[Hold] = []
    packs: list[tuple[int, int, int]] = []
    for change in changes:
        hold = change.hold
        before = hold.seqs[hold.place] if hold.place < len(hold.seqs) else _END
        head = _advance(hold, out, change.gone)
        end = hold.seqs[-1] + 1 if head is None else head
        if any(before <= last < end for last in hold.lasts):
            packs.append((hold.lane, end, end))
        if head is None:
            ended.append(hold)
            continue
        _dig(transaction, queue, hold, [seq for seq in change.gone if seq > head])
        held = hold.seqs[hold.place :]
        if hold.kept or hold.has_holes:
            held = [seq for seq in held if seq in out]
        if held:
            due_at = max(hold.kept.values(), default=0.0)
            db.execute(_HEAD, (head, head, len(held), held[-1], due_at, queue, hold.key))
        else:
            ended.append(hold)
    if packs:
        db.executemany(_DROP_PACKS, packs)
    if ended:
        _free_all(transaction, queue, ended)
        transaction.woken.add(queue)


def end_run(transaction: Transaction, queue: Queue, out: dict[int, Hold], run: Hold) -> None:
    """`move_heads` where all that is left of a run is settled, in its order: nothing of it is looked at again."""
    seqs, lasts = run.seqs[run.place :], run.lasts
    if len(out) == len(seqs):
        transaction.undo.append((out.update, out.copy()))
        out.clear()
    else:
        transaction.undo.append((out.update, dict.fromkeys(seqs, run)))
        for seq in seqs:
            del out[seq]
    end = seqs[-1] + 1
    goes_on = bool(lasts) and lasts[-1] >= end
    if lasts and (not goes_on or [1 for last in lasts if seqs[0] <= last < end]):
        transaction.cursor.execute(_DROP_PACKS, (run.lane, end, end))
    if goes_on:
        _free(transaction, queue.id, run.key, end)
    elif transaction.cursor.execute(_DROP_LANE, (queue.id, run.key)).rowcount:
        queue.gone.add(run.key)
    else:
        _go_on(transaction, queue.id, [run])
    transaction.woken.add(queue.id)


def _advance(hold: Hold, out: dict[int, Hold], gone: list[int]) -> int | None:
    """The first record of the run that stays in the lane, after `gone`; None if all are settled."""
    seqs, place, kept = hold.seqs, hold.place, hold.kept
    if seqs[place : place + len(gone)] == gone:  # in order, as they mostly are: no look at each
        place += len(gone)
    while place < len(seqs) and seqs[place] not in out and seqs[place] not in kept:
        place += 1
    hold.place = place
    return seqs[place] if place < len(seqs) else None


def _dig(transaction: Transaction, queue: int, hold: Hold, seqs: Sequence[int]) -> None:
    """Note records that were settled before their turn."""
    if seqs:
        transaction.db.executemany(_DIG, [(hold.lane, seq) for seq in seqs])
        if not hold.has_holes:
            transaction.db.execute(_HAS_HOLES, (queue, hold.key))
            hold.has_holes = True


def _free_all(transaction: Transaction, queue: int, holds: Sequence[Hold]) -> None:
    """Runs of which nothing is held any more: the lane goes to whoever comes, or is empty and ends."""
    empty: list[Hold] = []
    for hold in holds:
        end = hold.seqs[-1] + 1
        if hold.place < len(hold.seqs):
            _free(transaction, queue, hold.key, hold.seqs[hold.place], max(hold.kept.values(), default=0.0))
        elif hold.has_holes:
            free_from(transaction, queue, hold.key, hold.lane, end)
        elif hold.lasts and hold.lasts[-1] >= end:
            _free(transaction, queue, hold.key, end)
        else:
            empty.append(hold)
    if empty:
        _end_lanes(transaction, queue, empty)


def _end_lanes(transaction: Transaction, queue: int, empty: Sequence[Hold]) -> None:
    """All of these runs is settled; packs that came since keep their lanes."""
    gone = transaction.db.executemany(_DROP_LANE, [(queue, hold.key) for hold in empty]).rowcount
    if gone == len(empty):
        transaction.lanes_gone(queue, [hold.key for hold in empty])
    else:
        _go_on(transaction, queue, empty, gone)


def _go_on(transaction: Transaction, queue: int, ended: Sequence[Hold], gone: int = 0) -> None:
    """Lanes of these runs are still there, but for so many that are gone."""
    db = transaction.db
    ends = [(hold, hold.seqs[-1] + 1) for hold in ended]
    going_on = [(transaction.now, end, end, queue, hold.key, end) for hold, end in ends]
    if gone + db.executemany(_GO_ON, going_on).rowcount == len(ended):
        return
    for hold in ended:
        if db.execute(_LANE_IS_THERE, (queue, hold.key)).fetchone():
            free_from(transaction, queue, hold.key, hold.lane, hold.seqs[-1] + 1)


def _free(transaction: Transaction, queue: int, key: str, head: int, due_at: float = 0.0) -> None:
    values = {"due": due_at, "now": transaction.now, "head": head, "queue": queue, "key": key}
    transaction.db.execute(_FREE, values)


def free_from(transaction: Transaction, queue: int, key: str, lane: int, seq: int) -> None:
    """Free the lane from the first record at or after `seq` that was not settled out of turn."""
    head = first_open(transaction, lane, seq)
    end = _END if head is None else head
    transaction.db.execute(_DROP_PACKS, (lane, end, end))
    transaction.db.execute(_FILL, (lane, end))
    if head is None:
        transaction.db.execute(_DROP_LANE, (queue, key))
    else:
        _free(transaction, queue, key, head)


def first_open(transaction: Transaction, lane: int, seq: int) -> int | None:
    for first, last in transaction.db.execute(_PACKS_FROM, (lane, seq)):  # read no further than needed
        for at in range(max(first, seq), last + 1):
            if transaction.db.execute(_IS_HOLE, (lane, at)).fetchone() is None:
                return at
    return None
