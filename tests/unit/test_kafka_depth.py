"""What a partition holds when some of its records run at a former owner; without a broker."""

from __future__ import annotations

from hivewire.backends.kafka.depth import left_of, with_moved
from hivewire.backends.kafka.metadata import Committed
from hivewire.rules.pool import Pool
from hivewire.rules.progress import History, Progress, decode, encode
from hivewire.rules.words import Kept, Offer, Take, Word

SHARD = 1


def pool_of(*held: int, done: tuple[int, ...] = (), back: tuple[int, ...] = ()) -> Pool:
    """One member runs these of the partition, and has told of some what became of them."""
    pool = Pool(100, 60.0, 60.0)
    offers = [Offer(SHARD, at) for at in held]
    pool.apply(Word("m", 6.0, take=Take(len(offers), len(offers), offers)), 0, 1.0)
    pool.apply(Word("m", done=[(SHARD, at) for at in done], back=[Kept(SHARD, at, 1) for at in back]), 1, 2.0)
    return pool


def committed(low: int, ahead: tuple[int, ...] = (), running: tuple[int, ...] = ()) -> Committed:
    history = [History(at, 1, running=True) for at in running]
    state = encode(Progress(low, ahead, history, low))
    return Committed(low, state, len(ahead), len(running))


def test_what_runs_at_a_former_owner_runs() -> None:
    found = with_moved(committed(4, (7,), (9,)), pool_of(5, 6), SHARD)
    assert (found.watermark, found.finished, found.running) == (4, 1, 3)
    state = decode(found.state)
    assert [entry.at for entry in state.history if entry.running] == [5, 6, 9]
    assert list(state.ahead) == [7]


def test_what_was_finished_there_is_finished_before_the_owner_commits_it() -> None:
    found = with_moved(committed(4, (), (6,)), pool_of(3, 5, 6, done=(3, 5, 6)), SHARD)
    assert (found.watermark, found.finished, found.running) == (4, 2, 0)
    assert list(decode(found.state).ahead) == [5, 6]


def test_nothing_is_counted_twice() -> None:
    at = committed(4, (5,), (6,))
    assert with_moved(at, pool_of(3, 5, 6, done=(3, 5)), SHARD).running == 1
    assert with_moved(at, pool_of(3, 5, done=(3, 5)), SHARD) == at


def test_what_came_back_waits_and_other_partitions_are_not_concerned() -> None:
    at = committed(4)
    assert with_moved(at, pool_of(5, back=(5,)), SHARD) == at
    assert with_moved(at, pool_of(5), SHARD + 1) == at


def test_what_was_deleted_is_neither_waiting_nor_running_nor_due() -> None:
    history = [History(5, 1, 1), History(6, 1, running=True), History(9, 2, 1), History(10, 1, running=True)]
    state = encode(Progress(4, (7, 8, 11), history, 12))
    found = left_of(Committed(4, state, 3, 2, (20.0, 30.0)), 8)
    assert (found.watermark, found.finished, found.running, found.due_at) == (8, 2, 1, [30.0])
    assert decode(found.state) == Progress(8, [8, 11], history[2:], 12)


def test_all_that_is_left_is_as_it_was_committed() -> None:
    at = committed(4, (7,), (9,))
    assert left_of(at, 4) is at
    assert left_of(at, 0) is at
