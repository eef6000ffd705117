"""The state of a competing queue against a slow, obvious model, and what no order of words may break."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hivewire.rules.pool import At, Heard, Kept, Offer, Pool, Take, Word

LEASE_S = 6.0
MEMBERS = ("a", "b", "c")
SIZE = 12


class Log:
    """A log with a clock of its own; every reader applies it alike."""

    def __init__(self) -> None:
        self.now = 1_000.0
        self.words: list[tuple[Word, int, float]] = []
        self.pool = Pool(1_000, 3_600, 3_600)

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


def offers(offsets: Sequence[int], lives: int = 1 << 60) -> list[Offer]:
    return [Offer(0, offset, 1 + offset % lives) for offset in offsets]


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


def test_bytes_of_another_release_are_refused() -> None:
    with pytest.raises(ValueError, match="state of a competing queue"):
        Pool(1, 1, 1).restore(b"\x01", 0)


Step = tuple[str, str, list[int], float]
STEPS = st.lists(
    st.tuples(
        st.sampled_from(["join", "take", "done", "back", "leave", "silent", "beat"]),
        st.sampled_from(MEMBERS),
        st.lists(st.integers(0, SIZE - 1), max_size=4),
        st.sampled_from([0.0, 0.5, 3.0, 7.0]),
    ),
    max_size=60,
)


def play(steps: Sequence[Step]) -> Log:
    """Each step, with what must hold after it: the model is who was given what by whom."""
    log, holder, finished = Log(), dict[At, str](), set[At]()
    for kind, name, offsets, after_s in steps:
        ats = [(0, offset) for offset in dict.fromkeys(offsets)]
        if kind == "join":
            log.say(Word(name, LEASE_S), after_s)
        elif kind == "take":
            for grant in log.say(Word(name, take=Take(9, 1, offers(offsets))), after_s).granted:
                assert grant.at not in holder
                assert grant.at not in finished
                holder[grant.at] = name
        elif kind == "done":
            refused = set(log.say(Word(name, done=ats), after_s).refused)
            assert refused == {at for at in ats if holder.get(at) != name}
            finished |= set(ats) - refused
        elif kind == "back":
            log.say(Word(name, back=[Kept(*at) for at in ats]), after_s)
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


@given(STEPS, st.integers(0, 60))
def test_who_begins_with_a_kept_state_sees_what_all_see(steps: list[Step], at: int) -> None:
    log = play(steps)
    early = Log()
    early.words = log.words[:at]
    later = Pool(1_000, 3_600, 3_600)
    later.restore(early.again().pack(), 0)
    log.again(skip=at, pool=later)
    assert Counter(later.known) == Counter(log.pool.known)
    assert {at: known.holder for at, known in later.known.items()} == {
        at: known.holder for at, known in log.pool.known.items()
    }
    assert (later.low(0), later.ahead(0), set(later.members)) == (
        log.pool.low(0),
        log.pool.ahead(0),
        set(log.pool.members),
    )
