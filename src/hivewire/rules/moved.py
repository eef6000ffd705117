"""A shard that changed its owner while handlers ran: what the new owner must know of what ran on.

Counters only rise, so the larger of two is the newer. Therefore what is saved of a shard when it is handed over leaves
out the starts of what runs on: whether they were starts is said by who runs it, or by its death. The pool remembers a
death for good; a state that has the start already was saved by an owner who has counted it.
"""

from __future__ import annotations

import msgspec

from hivewire.record import Fetched
from hivewire.rules.pool import Pool
from hivewire.rules.progress import History, Progress, decode, encode
from hivewire.rules.words import At


class Returned(msgspec.Struct, frozen=True):
    """A record that ran at another member and is to be handled again, with the counters that it brought."""

    starts: int
    failures: int
    crashes: int
    died: int
    suspect: bool
    due_at: float


def before_this_start(fetched: Fetched) -> int:
    """How often it was started before, when it is about to run on elsewhere. It may not have begun: then it is said
    with its outcome."""
    return max(0, fetched.starts - 1)


def taken_over(pool: Pool, shard: int, watermark: int, saved: bytes) -> tuple[bytes, list[int]]:
    """What was saved of the shard, with what has become of records that ran elsewhere since, and those that still do.

    `pool` has a holder for each record that runs on at a former owner.
    """
    state = decode(saved) if saved else Progress(watermark, (), (), watermark)
    low = state.watermark
    finished = {*state.ahead, *(at for at in pool.ahead(shard) if at >= low), *range(low, pool.low(shard))}
    history = {entry.at: entry for entry in state.history if entry.at not in finished}
    held: list[int] = []
    taken_to = state.taken_to
    for (number, at), known in pool.known.items():
        if number != shard or at < low or at in finished:
            continue
        if known.holder is not None:
            held.append(at)
            continue
        before = history.get(at, History(at))
        history[at] = History(
            at,
            max(before.starts, known.starts),
            max(before.failures, known.failures),
            max(before.crashes, known.crashes),
            before.running or (known.died > 0 and known.starts > before.starts),
        )
        if known.suspect:
            taken_to = max(taken_to, at + 1)
    rising = [history[at] for at in sorted(history)]
    return encode(Progress(low, sorted(finished), rising, taken_to)), held


def returned_of(pool: Pool, at: At) -> Returned | None:
    """What has become of one that nobody holds any more; None: it is finished."""
    known = pool.known.get(at)
    if known is None:
        return None
    return Returned(known.starts, known.failures, known.crashes, known.died, known.suspect, known.due_at)
