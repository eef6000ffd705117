"""The state of a competing queue against a slow, obvious model, and what no order of words may break."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hivewire.rules import pool as rules
from hivewire.rules.pool import Pool
from hivewire.rules.words import At, Grant, Heard, Kept, Offer, Take, Word

LEASE_S = 6.0
MEMBERS = ("a", "b", "c")
SIZE = 12


class Log:
    """A log with a clock of its own; every reader applies it alike."""

    def __init__(self, life_s: float = 3_600, key_s: float = 3_600) -> None:
        self.now = 1_000.0
        self.words: list[tuple[Word, int, float]] = []
        self.pool = Pool(1_000, life_s, key_s)

    def say(self, word: Word, after_s: float = 0.01) -> Heard:
        self.now += after_s
        self.words.append((word, len(self.words), self.now))
        return self.pool.apply(*self.words[-1])

    def again(self, skip: int = 0, pool: Pool | None = None) -> Pool:
        pool = pool or Pool(1_000, 3_600, 3_600)
        for word in self.words[skip:]:
            pool.apply(*word)
        return pool


def join(log: Log, *names: str) -> None:
    for name in names:
        log.say(Word(name, LEASE_S))


def offers(offsets: Sequence[int]) -> list[Offer]:
    return [Offer(0, offset, 1 + offset) for offset in offsets]


def doubles(offsets: Sequence[int]) -> list[Offer]:
    """Every fifth is the same message, and those with a key are only two."""
    return [Offer(0, offset, 1 + offset % 5, 100 + offset % 4 if offset % 4 < 2 else 0) for offset in offsets]


def take(log: Log, name: str, offsets: Sequence[int], most: int = 100, starting: int = 0) -> list[int]:
    return [grant.at[1] for grant in log.say(Word(name, take=Take(most, starting, offers(offsets)))).granted]


def silent(log: Log, name: str, by: str = "b") -> Heard:
    return log.say(Word(by, silent=(name, log.pool.members[name].last)), after_s=LEASE_S)


def test_of_two_that_offer_the_same_the_first_in_the_log_has_it() -> None:
    log = Log()
    join(log, "a", "b")
    assert take(log, "a", [0, 1, 2], most=2) == [0, 1]
    assert take(log, "b", [0, 1, 2], most=2) == [2]
    assert log.say(Word("b", done=[(0, 1), (0, 2)])).refused == [(0, 1)]
    assert (log.pool.low(0), log.pool.ahead(0)) == (0, [2])
    log.say(Word("a", done=[(0, 0), (0, 1)]))
    assert (log.pool.low(0), log.pool.ahead(0)) == (3, [])


def test_who_is_silent_for_its_lease_is_buried_and_only_what_ran_is_blamed() -> None:
    log = Log()
    join(log, "a", "b")
    assert take(log, "a", [0, 1], starting=1) == [0, 1]
    log.say(Word("b", silent=("a", log.pool.members["a"].last)), after_s=LEASE_S - 1)
    assert "a" in log.pool.members
    assert silent(log, "a").buried == "a"
    assert log.say(Word("a", done=[(0, 0)])).refused == [(0, 0)]
    found = log.say(Word("b", take=Take(9, 9, offers([0, 1, 2])))).granted
    assert [(g.at[1], g.starts, g.died, g.suspect, g.marked) for g in found] == [
        (0, 1, 1, True, False),
        (1, 0, 0, True, False),
        (2, 1, 0, False, True),
    ]


def test_who_speaks_in_time_is_not_buried() -> None:
    log = Log()
    join(log, "a", "b")
    last = log.pool.members["a"].last
    log.say(Word("a"), after_s=LEASE_S - 1)
    assert not log.say(Word("b", silent=("a", last)), after_s=LEASE_S - 1).buried
    assert "a" in log.pool.members


def test_what_waits_for_another_attempt_is_not_taken_before() -> None:
    log = Log()
    join(log, "a", "b")
    take(log, "a", [0], starting=1)
    log.say(Word("a", back=[Kept(0, 0, 1, 1, 0, log.now + 5)]))
    assert take(log, "b", [0]) == []
    assert log.pool.next_due(log.now) is not None
    log.now += 5
    (grant,) = log.say(Word("b", take=Take(1, 0, offers([0])))).granted
    assert (grant.starts, grant.failures, grant.suspect) == (1, 1, False)


def test_a_second_one_of_the_same_life_is_told_to_be_one() -> None:
    log = Log()
    join(log, "a", "b")
    first = log.say(Word("a", take=Take(9, 9, [Offer(0, 0, 7), Offer(0, 1, 8, 5)]))).granted
    second = log.say(Word("b", take=Take(9, 9, [Offer(0, 2, 7), Offer(0, 3, 9, 5)]))).granted
    assert [grant.seen for grant in (*first, *second)] == [False, False, True, True]
    assert not any(grant.marked for grant in second)
    log.say(Word("b", done=[(0, 2), (0, 3)]))
    log.say(Word("a", done=[(0, 0), (0, 1)]))
    third = log.say(Word("b", take=Take(9, 9, [Offer(0, 4, 7), Offer(0, 5, 10, 5), Offer(0, 6, 11)]))).granted
    assert [grant.seen for grant in third] == [True, True, False]


def test_gaps_do_not_hold_up_the_watermark() -> None:
    log = Log()
    join(log, "a")
    take(log, "a", [2, 5])
    log.say(Word("a", done=[(0, 2)], gaps=[(0, 0, 2), (0, 3, 5)]))
    assert log.pool.low(0) == 5


@given(
    st.sets(st.integers(0, 30)),
    st.sets(st.integers(0, 30)),
    st.lists(st.tuples(st.integers(0, 1), st.integers(0, 32), st.integers(0, 32)), max_size=4),
)
def test_a_run_of_gaps_is_finished_as_one_after_the_other_is(
    taken: set[int], done: set[int], gaps: list[tuple[int, int, int]]
) -> None:
    log = Log()
    join(log, "a")
    take(log, "a", sorted(taken | done))
    log.say(Word("a", done=[(0, at) for at in sorted(done)]))
    log.say(Word("a", back=[Kept(0, at) for at in sorted(taken - done) if at % 2]))
    log.say(Word("a", gaps=gaps))
    open_ = {0: taken - done, 1: set[int]()}
    for shard in (0, 1):
        finished = done if shard == 0 else set[int]()
        finished = finished | {at for number, first, end in gaps if number == shard for at in range(first, end)}
        finished -= open_[shard]
        low = next(at for at in range(40) if at not in finished)
        assert (log.pool.low(shard), log.pool.ahead(shard)) == (low, sorted(at for at in finished if at > low))
    assert {at[1] for at in log.pool.known} == open_[0]


def test_what_was_emptied_takes_no_step_for_each_message() -> None:
    """But for what is held: it ends when its holder says so."""
    log = Log()
    join(log, "a")
    take(log, "a", [7, 10**15])
    log.say(Word("a", gaps=[(0, 0, 7)]))
    log.say(Word("a", gaps=[(1, 0, 10**15)]))
    assert (log.pool.low(0), log.pool.low(1)) == (7, 10**15)


def test_bytes_of_another_release_are_refused() -> None:
    with pytest.raises(ValueError, match="state of a competing queue"):
        Pool(1, 1, 1).restore(b"\x01", 0)


def content(pool: Pool) -> list[Any]:
    """What it keeps, as it stands in a record: version, shards, known, free, members, lives, keys, topic."""
    packed: list[Any] = msgspec.msgpack.decode(pool.pack())
    return packed


def test_a_word_is_written_as_lists() -> None:
    word = Word("a", 6.0, take=Take(2, 1, [Offer(0, 4), Offer(1, 5, 6, 7, 3)]), back=[Kept(0, 1)])
    written = msgspec.msgpack.decode(msgspec.msgpack.encode(word))
    back, take = [[0, 1, 0, 0, 0, 0.0]], [2, 1, [[0, 4, 0, 0, 0], [1, 5, 6, 7, 3]], False]
    assert written == ["a", 6.0, False, [], [], back, take, [], None, "", []]
    for other in ([*written, "what a later version adds"], written[:-1]):
        read = msgspec.msgpack.decode(msgspec.msgpack.encode(other), type=Word)
        assert msgspec.msgpack.encode(read) == msgspec.msgpack.encode(word)


@given(st.sets(st.integers(0, 40)), st.sets(st.integers(0, 40)), st.integers(0, 40), st.booleans())
def test_what_is_gone_is_forgotten_and_nothing_else(
    done: set[int], back: set[int], before: int, is_restored: bool
) -> None:
    """Handlers that outlived their partition have finished these, and given those back; one still runs."""
    log = Log()
    join(log, "a")
    held = sorted((done | back) | {7})
    take(log, "a", held)
    log.say(Word("a", done=[(0, at) for at in sorted(done - {7})]))
    log.say(Word("a", back=[Kept(0, at, 2, 1) for at in sorted(back - done - {7})]))
    known = {at: msgspec.structs.astuple(entry) for at, entry in log.pool.known.items()}
    ahead, low = log.pool.ahead(0), log.pool.low(0)
    may_forget = log.pool.remembers(0, before)
    log.say(Word("a", gone=[(0, before), (1, 5)]))
    pool = log.again() if is_restored else log.pool
    assert (pool.ahead(0), pool.low(0)) == ([at for at in ahead if at >= before], low)
    kept = {at: entry for at, entry in known.items() if at[1] >= before or at == (0, 7)}
    assert {at: msgspec.structs.astuple(entry) for at, entry in pool.known.items()} == kept
    assert set(pool.free) == set(kept) - {(0, 7)}
    assert may_forget == (len(kept) < len(known) or any(at < before for at in ahead))
    assert not pool.remembers(0, before)
    assert pool.is_held((0, 7), "a")


def test_what_a_word_does_not_say_changes_nothing() -> None:
    assert Log().say(Word("a")) == Heard(is_member=False, refused=[], granted=(), freed=False, buried="")
    log = Log()
    assert log.say(Word("a", LEASE_S)) == Heard(is_member=True, refused=(), granted=(), freed=False, buried="")
    found = log.say(Word("a", take=Take(1, 0, offers([0]))))
    assert found == Heard(granted=[Grant((0, 0), 0, 0, 0, 0, suspect=False, marked=False, seen=False)])
    assert log.say(Word("a")) == Heard()


def test_who_is_no_member_is_refused_all_it_says() -> None:
    log = Log()
    join(log, "a")
    take(log, "a", [0, 1, 2])
    heard = log.say(Word("x", done=[(0, 0)], started=[Kept(0, 1)], back=[Kept(0, 2)]))
    assert (heard.is_member, heard.refused) == (False, [(0, 0), (0, 1), (0, 2)])
    assert all(log.pool.is_held((0, offset), "a") for offset in (0, 1, 2))


def test_a_member_is_refused_what_others_hold_and_the_rest_counts() -> None:
    log = Log()
    join(log, "a", "b")
    take(log, "a", [0, 1])
    take(log, "b", [2, 3])
    heard = log.say(Word("b", started=[Kept(0, 0, 5), Kept(0, 2, 6, 7, 8)], back=[Kept(0, 1, 5), Kept(0, 3, 9)]))
    assert (heard.refused, heard.freed) == ([(0, 0), (0, 1)], True)
    assert [(k.starts, k.failures, k.crashes) for k in log.pool.known.values()] == [
        (0, 0, 0),
        (0, 0, 0),
        (6, 7, 8),
        (9, 0, 0),
    ]
    assert list(log.pool.free) == [(0, 3)]


def test_what_is_held_finished_or_waits_is_told_apart() -> None:
    log = Log()
    join(log, "a", "b")
    take(log, "a", [0, 1, 2, 4, 5])
    log.say(Word("a", done=[(0, 0), (0, 2)], back=[Kept(0, 4, due_at=2_000.0), Kept(0, 5, due_at=3_000.0)]))
    pool = log.pool
    assert [offset for offset in range(7) if pool.is_fresh((0, offset))] == [3, 6]
    assert pool.is_fresh((1, 0))
    assert [offset for offset in range(7) if pool.may_be_taken((0, offset), 2_000.0)] == [3, 4, 6]
    assert [offset for offset in range(7) if pool.is_held((0, offset), "a")] == [1]
    assert not pool.is_held((0, 1), "b")
    assert [pool.next_due(now) for now in (0.0, 2_000.0, 3_000.0)] == [2_000.0, 3_000.0, None]


def test_who_leaves_frees_what_it_holds_without_blame() -> None:
    log = Log()
    join(log, "a", "b")
    take(log, "a", [0, 1], starting=2)
    log.say(Word("a", done=[(0, 1)]))
    heard = log.say(Word("a", leaves=True))
    assert (heard.freed, set(log.pool.members)) == (True, {"b"})
    (grant,) = log.say(Word("b", take=Take(9, 9, offers([0, 1])))).granted
    assert grant == Grant((0, 0), 2, 0, 0, 0, suspect=False, marked=True, seen=False)


def test_what_was_given_back_stays_with_who_takes_it_next() -> None:
    log = Log()
    join(log, "a", "b")
    take(log, "a", [0])
    log.say(Word("a", back=[Kept(0, 0)]))
    take(log, "b", [0])
    log.say(Word("a", leaves=True))
    assert (log.pool.is_held((0, 0), "b"), list(log.pool.free)) == (True, [])


def test_what_was_due_later_is_free_at_once_when_its_holder_leaves() -> None:
    pool = Pool(10, 10, 10)
    pool.apply(Word("a", LEASE_S, take=Take(1, 0, offers([0]))), 0, 0.0)
    pool.apply(Word("a", back=[Kept(0, 0, due_at=0.25)]), 1, 0.0)
    pool.apply(Word("a", take=Take(1, 0, offers([0]))), 2, 0.25)
    pool.apply(Word("a", leaves=True), 3, 0.25)
    assert pool.may_be_taken((0, 0), 0.0)


def test_of_what_is_taken_the_first_are_marked() -> None:
    log = Log()
    join(log, "a")
    found = log.say(Word("a", take=Take(9, 2, offers([0, 1, 2])))).granted
    assert [(grant.marked, grant.starts) for grant in found] == [(True, 1), (True, 1), (False, 0)]


def test_what_was_started_later_is_blamed_too_and_once_alone() -> None:
    log = Log()
    join(log, "a", "b")
    take(log, "a", [0, 1, 2], starting=1)
    log.say(Word("a", started=[Kept(0, 1, 1)]))
    assert silent(log, "a") == Heard(freed=True, buried="a")
    found = log.say(Word("b", take=Take(9, 9, offers([0, 1, 2])))).granted
    assert [(grant.died, grant.suspect) for grant in found] == [(2, True), (2, True), (0, True)]
    log.say(Word("b", back=[Kept(0, 0, 1)]))
    (grant,) = log.say(Word("b", take=Take(9, 9, offers([0])))).granted
    assert (grant.died, grant.suspect) == (0, False)


def test_a_lease_ends_on_the_moment() -> None:
    pool = Pool(10, 10, 10)
    pool.apply(Word("a", LEASE_S), 7, 0.0)
    assert not pool.apply(Word("x", silent=("a", 7)), 8, LEASE_S - 0.5).buried
    assert not pool.apply(Word("x", silent=("a", 6)), 9, LEASE_S).buried
    assert pool.apply(Word("x", silent=("a", 7)), 10, LEASE_S).buried == "a"


def test_a_double_that_is_settled_first_does_not_settle_the_other() -> None:
    log = Log()
    join(log, "a", "b")
    log.say(Word("a", take=Take(1, 1, [Offer(0, 0, 7, 5)])))
    log.say(Word("b", take=Take(1, 1, [Offer(0, 1, 7, 5)])))
    log.say(Word("b", done=[(0, 1)]))
    log.say(Word("a", back=[Kept(0, 0)]))
    (grant,) = log.say(Word("b", take=Take(1, 1, [Offer(0, 0, 7, 5)]))).granted
    assert not grant.seen


def test_lives_and_keys_are_forgotten_after_their_times() -> None:
    log = Log(life_s=10, key_s=20)
    join(log, "a")
    log.say(Word("a", take=Take(1, 1, [Offer(0, 0, 7, 5)])))
    for offset in range(3):
        log.say(Word("a", done=[(0, offset)], take=Take(1, 1, [Offer(0, offset + 1, 50 + offset)])), after_s=10)
    found = log.say(Word("a", take=Take(9, 9, [Offer(1, 0, 7), Offer(1, 1, 8, 5)]))).granted
    assert [grant.seen for grant in found] == [False, True]
    for offset in range(3, 5):
        log.say(Word("a", done=[(0, offset)], take=Take(1, 1, [Offer(0, offset + 1, 50 + offset)])), after_s=20)
    assert [g.seen for g in log.say(Word("a", take=Take(1, 1, [Offer(1, 2, 9, 5)]))).granted] == [False]


def test_a_kept_state_holds_everything() -> None:
    log = Log()
    join(log, "a")
    take(log, "a", [0, 2, 3, 4, 7, 8, 10, 11, 12])
    log.say(Word("a", take=Take(9, 0, [Offer(1, 0, 90, 91), Offer(1, 1, 92, 93), Offer(1, 2, 90)])))
    log.say(Word("a", done=[(0, n) for n in (2, 3, 4, 7, 8, 10)] + [(1, 1)], back=[Kept(0, 12, 3, 2, 1, 4_000.0)]))
    version, shards, _, free, members, *_ = content(log.pool)
    assert (version, shards) == (1, [[0, 0, [[2, 5], [7, 9], [10, 11]]], [1, 0, [[1, 2]]]])
    assert (free, members) == ([[0, 12]], {"a": [LEASE_S, log.now, 3]})
    later = Pool(1_000, 3_600, 3_600)
    later.restore(log.pool.pack(), log.now)
    assert content(later) == content(log.pool)
    again = [Offer(2, 0, 90), Offer(2, 1, 95, 91), Offer(2, 2, 92), Offer(2, 3, 96, 93), Offer(2, 4, 97)]
    found = later.apply(Word("a", take=Take(9, 0, again)), 4, log.now).granted
    assert [grant.seen for grant in found] == [True, True, True, True, False]
    later.apply(Word("a", leaves=True), 5, log.now)
    assert set(later.free) == set(later.known)


def test_a_kept_state_holds_the_newest_of_the_lives_and_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rules, "_MOST_REMEMBERED", 3)
    log = Log()
    join(log, "a")
    log.say(Word("a", take=Take(9, 0, [Offer(0, n, 10 + n, 20 + n) for n in range(5)])))
    log.say(Word("a", done=[(0, n) for n in range(5)]))
    later = Pool(1_000, 3_600, 3_600)
    later.restore(log.pool.pack(), log.now)
    found = later.apply(Word("a", take=Take(9, 0, [Offer(1, n, 10 + n) for n in range(5)])), 3, log.now).granted
    assert [grant.seen for grant in found] == [False, False, True, True, True]
    found = later.apply(Word("a", take=Take(9, 0, [Offer(2, n, 30 + n, 20 + n) for n in range(5)])), 4, log.now).granted
    assert [grant.seen for grant in found] == [False, False, True, True, True]


def test_a_state_of_another_version_is_refused() -> None:
    packed = content(Log().pool)
    packed[0] += 1
    with pytest.raises(ValueError, match="in version 2, not 1"):
        Pool(1, 1, 1).restore(msgspec.msgpack.encode(packed), 0)


Step = tuple[str, str, list[int], float]
STEPS = st.lists(
    st.tuples(
        st.sampled_from(["join", "take", "done", "start", "back", "leave", "silent", "beat"]),
        st.sampled_from(MEMBERS),
        st.lists(st.integers(0, SIZE - 1), max_size=4),
        st.sampled_from([0.0, 0.5, 3.0, 7.0]),
    ),
    max_size=60,
)


def play(steps: Sequence[Step]) -> Log:
    """Each step, with what must hold after it: the model is who was given what by whom."""
    log, holder, finished = Log(), dict[At, str](), set[At]()
    join(log, *MEMBERS)
    for kind, name, offsets, after_s in steps:
        ats = [(0, offset) for offset in dict.fromkeys(offsets)]
        if kind == "join":
            log.say(Word(name, LEASE_S), after_s)
        elif kind == "take":
            for grant in log.say(Word(name, take=Take(9, 1, doubles(offsets))), after_s).granted:
                assert grant.at not in holder
                assert grant.at not in finished
                holder[grant.at] = name
        elif kind == "done":
            refused = set(log.say(Word(name, done=ats), after_s).refused)
            assert refused == {at for at in ats if holder.get(at) != name}
            finished |= set(ats) - refused
        elif kind in ("start", "back"):
            kept = [Kept(*at, 1) for at in ats]
            word = Word(name, back=kept) if kind == "back" else Word(name, started=kept)
            assert set(log.say(word, after_s).refused) == {at for at in ats if holder.get(at) != name}
        elif kind == "leave":
            log.say(Word(name, leaves=True), after_s)
        elif kind == "silent" and name in log.pool.members:
            log.say(Word("x", silent=(name, log.pool.members[name].last)), after_s)
        else:
            log.say(Word(name), after_s)
        held = {at: known.holder for at, known in log.pool.known.items() if known.holder is not None}
        holder = {at: who for at, who in holder.items() if held.get(at) == who}
        assert held == holder
        assert set(held.values()) <= set(log.pool.members)
        assert not finished & log.pool.known.keys()
        assert {at for at in log.pool.known if at not in held} == set(log.pool.free)
        done_here = {(0, n) for n in range(log.pool.low(0))} | {(0, n) for n in log.pool.ahead(0)}
        assert done_here == finished
    return log


@given(STEPS)
def test_each_message_has_one_holder_and_is_finished_once(steps: list[Step]) -> None:
    play(steps)


@given(STEPS, st.integers(0, 63))
def test_who_begins_with_a_kept_state_sees_what_all_see(steps: list[Step], at: int) -> None:
    log = play(steps)
    early = Log()
    early.words = log.words[:at]
    later = Pool(1_000, 3_600, 3_600)
    later.restore(early.again().pack(), 0)
    log.again(skip=at, pool=later)
    assert content(later) == content(log.pool)


def test_of_a_topic_that_is_gone_nothing_counts_in_the_one_that_was_made_anew() -> None:
    """Else its messages pass for finished, or for held, by their positions."""
    log = Log()
    log.say(Word("a", LEASE_S, topic="first"))
    join(log, "b")
    assert take(log, "a", [0, 1, 2]) == [0, 1, 2]
    log.say(Word("a", done=[(0, 0), (0, 1)]))
    log.say(Word("b", LEASE_S, topic="first"))
    assert log.pool.low(0) == 2, "the same topic is no news"
    assert log.say(Word("", topic="second")).freed
    assert (log.pool.low(0), log.pool.known, log.pool.members) == (0, {}, {})
    assert log.say(Word("a", done=[(0, 2)])).refused == [(0, 2)]
    join(log, "c")
    assert take(log, "c", [2, 3]) == [2, 3]
    (again,) = log.say(Word("c", take=Take(1, 1, [Offer(0, 7, 1)]))).granted
    assert again.seen, "what was settled before is a duplicate all the same"


def test_the_topic_is_part_of_the_state_that_is_kept() -> None:
    log = Log()
    log.say(Word("a", LEASE_S, topic="first"))
    take(log, "a", [0])
    kept = Pool(1_000, 3_600, 3_600)
    kept.restore(log.pool.pack(), log.now)
    assert kept.topic == "first"
    kept.apply(Word("b", LEASE_S, topic="second"), 9, log.now)
    assert (list(kept.members), kept.known) == (["b"], {})


def test_what_runs_at_a_member_already_is_its_own_though_it_was_to_wait_for_a_retry() -> None:
    log = Log()
    join(log, "a", "b")
    assert take(log, "a", [0, 1, 2]) == [0, 1, 2]
    log.say(Word("a", done=[(0, 2)], back=[Kept(0, 0, 1, 1, 0, log.now + 60)]))
    assert take(log, "b", [0, 1, 2, 3]) == [3]
    granted = log.say(Word("b", take=Take(9, 9, offers([0, 1, 2]), runs=True))).granted
    assert [grant.at[1] for grant in granted] == [0]
    assert [log.pool.is_finished((0, at)) for at in range(5)] == [False, False, True, False, False]
    assert log.pool.is_held((0, 1), "a")
