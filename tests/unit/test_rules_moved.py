"""What a new owner is told of records that ran on at a former one."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hivewire.record import Fetched, Record
from hivewire.rules.blame import judge
from hivewire.rules.moved import Returned, before_this_start, returned_of, taken_over
from hivewire.rules.pool import Pool
from hivewire.rules.progress import History, Progress, decode, encode
from hivewire.rules.words import Kept, Offer, Take, Word

SHARD, OTHER = 2, 3
LEASE_S = 6.0
places = st.sets(st.integers(0, 40))


def pool_of(held: set[int], shard: int = SHARD) -> Pool:
    """One member runs these."""
    pool = Pool(100, 60.0, 60.0)
    offers = [Offer(shard, at, at + 1) for at in sorted(held)]
    pool.apply(Word("m", LEASE_S, take=Take(len(offers), len(offers), offers)), 0, 1.0)
    return pool


@given(st.integers(0, 40), places, places, places)
def test_each_record_is_finished_or_runs_or_is_free(low: int, ahead: set[int], held: set[int], done: set[int]) -> None:
    ahead = {at for at in ahead if at > low}
    pool = pool_of(held)
    pool.apply(Word("m", done=[(SHARD, at) for at in sorted(held & done)]), 1, 2.0)
    saved = encode(Progress(low, sorted(ahead), (), low))
    state, away = taken_over(pool, SHARD, low, saved)
    found = decode(state)
    finished = ahead | (held & done)
    assert found.watermark == low
    assert set(found.ahead) == {at for at in finished if at >= low}
    assert set(away) == {at for at in held - finished if at >= low}
    assert not {entry.at for entry in found.history} & finished


@given(places)
def test_other_shards_are_not_concerned(held: set[int]) -> None:
    saved = encode(Progress(5, [7], [History(6, 2, 1)], 8))
    state, away = taken_over(pool_of(held, OTHER), SHARD, 5, saved)
    assert (decode(state), away) == (decode(saved), [])


def test_what_was_never_committed_begins_at_its_watermark() -> None:
    state, away = taken_over(pool_of({4}), SHARD, 4, b"")
    assert (decode(state).watermark, away) == (4, [4])


def test_what_came_back_brings_the_larger_of_its_counters() -> None:
    pool = pool_of({6, 7, 8})
    back = [Kept(SHARD, 6, 3, 2, 1, 9.5), Kept(SHARD, 7, 3, 0, 0)]
    pool.apply(Word("m", back=back), 1, 2.0)
    saved = encode(Progress(5, (), [History(6, 1, 1, 2), History(7, 1, 1, 1)], 5))
    state, away = taken_over(pool, SHARD, 5, saved)
    assert decode(state).history == [History(6, 3, 2, 2), History(7, 3, 1, 1)]
    assert away == [8]
    assert decode(state).taken_to == 5
    assert returned_of(pool, (SHARD, 6)) == Returned(3, 2, 1, 0, False, 9.5)


def test_what_its_member_died_with_is_suspect_and_counts_for_it_alone() -> None:
    pool = pool_of({6})
    pool.apply(Word("other", LEASE_S, silent=("m", 0)), 1, 1.0 + LEASE_S)
    saved = encode(Progress(5, (), [History(6, 0, 1)], 5))  # as it is handed over: without the start that runs on
    state, away = taken_over(pool, SHARD, 5, saved)
    assert away == []
    assert decode(state).history == [History(6, 1, 1, running=True)]
    assert decode(state).taken_to == 7
    assert returned_of(pool, (SHARD, 6)) == Returned(1, 0, 0, 1, True, 0.0)


@pytest.mark.parametrize("is_told_first", [False, True], ids=["told to the next owner", "told before there is one"])
@pytest.mark.parametrize(
    ("word", "counts"),
    [
        (Word("m", back=[Kept(SHARD, 6, 3, 2)]), True),
        (Word("m", back=[Kept(SHARD, 6, 2, 1)]), False),
        (Word("m", leaves=True), True),
        (Word("other", LEASE_S, silent=("m", 0)), True),
    ],
    ids=["failed", "not begun", "left", "died"],
)
def test_whether_what_ran_on_was_a_start_is_said_by_its_end(word: Word, *, counts: bool, is_told_first: bool) -> None:
    """A record that was being started for the third time, or about to be, when its shard went."""
    before = before_this_start(Fetched(SHARD, 6, 1, Record("m", "k", b""), 0.0, starts=3, failures=1))
    pool = Pool(100, 60.0, 60.0)
    pool.apply(Word("m", LEASE_S, take=Take(1, 1, [Offer(SHARD, 6, 7, 0, before)])), 0, 1.0)
    saved = encode(Progress(5, (), [History(6, before, 1)], 5))
    if is_told_first:
        pool.apply(word, 1, 1.0 + LEASE_S)
    starts = decode(taken_over(pool, SHARD, 5, saved)[0]).history[0].starts
    if not is_told_first:
        assert starts == before
        pool.apply(word, 1, 1.0 + LEASE_S)
        back = returned_of(pool, (SHARD, 6))
        assert back is not None
        starts = max(starts, back.starts)
    assert starts == 2 + counts


def test_what_was_not_begun_was_never_started_before() -> None:
    assert before_this_start(Fetched(SHARD, 6, 1, Record("m", "k", b""), 0.0)) == 0


def test_what_was_told_long_ago_takes_nothing_from_what_is_saved_since() -> None:
    pool = Pool(100, 60.0, 60.0)
    pool.apply(Word("m", LEASE_S, take=Take(1, 1, [Offer(SHARD, 6, 7, 0, 2)])), 0, 1.0)
    pool.apply(Word("m", back=[Kept(SHARD, 6, 2, 1)]), 1, 2.0)
    saved = encode(Progress(5, (), [History(6, 4, 3)], 5))
    assert decode(taken_over(pool, SHARD, 5, saved)[0]).history == [History(6, 4, 3)]


def test_what_is_finished_brings_nothing_back() -> None:
    pool = pool_of({6})
    assert pool.is_taken((SHARD, 6))
    pool.apply(Word("m", done=[(SHARD, 6)]), 1, 2.0)
    assert not pool.is_taken((SHARD, 6))
    assert returned_of(pool, (SHARD, 6)) is None


@given(moves=st.integers(1, 5), failures=st.integers(0, 2), before=st.integers(0, 3))
def test_a_death_counts_once_however_often_its_shard_moves_before_the_next_start(
    moves: int, failures: int, before: int
) -> None:
    """Each owner judges it, saves what it knows, and is gone before it starts anything."""
    pool = Pool(100, 60.0, 60.0)
    pool.apply(Word("m", LEASE_S, take=Take(1, 1, [Offer(SHARD, 6, 7, 0, before)])), 0, 1.0)
    pool.apply(Word("other", LEASE_S, silent=("m", 0)), 1, 1.0 + LEASE_S)
    saved = encode(Progress(5, (), [History(6, before, failures)], 5))
    for _ in range(moves):
        (known,) = decode(taken_over(pool, SHARD, 5, saved)[0]).history
        fetched = Fetched(
            SHARD, 6, 1, Record("m", "k", b""), 0.0, known.starts, known.failures, died=int(known.running)
        )
        judge(fetched)
        saved = encode(Progress(5, (), [History(6, fetched.starts, fetched.failures)], 5))
    assert (fetched.starts, fetched.failures) == (before + 1, failures + 1)
