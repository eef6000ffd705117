"""What was finished by words whose answers were lost, against a pool that says what came of each word."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from hivewire.rules.finished import MOST, Finished
from hivewire.rules.pool import Pool
from hivewire.rules.words import Heard, Offer, Take, Word

ATS = st.tuples(st.integers(0, 1), st.integers(0, 3))


@given(
    steps=st.lists(
        st.tuples(
            st.sampled_from(["me", "other"]), st.sampled_from(["take", "done"]), st.lists(ATS, max_size=3, unique=True)
        ),
        max_size=40,
    )
)
def test_only_what_this_member_finished_itself_is_not_refused(
    steps: list[tuple[str, str, list[tuple[int, int]]]],
) -> None:
    pool, finished = Pool(100, 60.0, 60.0), Finished()
    by: dict[tuple[int, int], str] = {}
    held: dict[tuple[int, int], str] = {}
    for place, member in enumerate(["me", "other"]):
        pool.apply(Word(member, 6.0), place, 1.0)
    for place, (member, what, ats) in enumerate(steps, 2):
        if what == "take":
            word = Word(member, take=Take(9, 9, [Offer(*at, life=4 * at[0] + at[1]) for at in ats]))
        else:
            word = Word(member, done=ats)
        heard = pool.apply(word, place, 1.0)
        for grant in heard.granted:
            held[grant.at] = member
        if what == "done":
            for at in ats:
                if held.get(at) == member and at not in by:
                    by[at] = member
        if member == "me":
            finished.heard(word, heard)
            assert finished.still(ats) == {at for at in ats if by.get(at) != "me"}


def test_who_says_it_again_is_not_refused_though_the_log_does() -> None:
    finished = Finished()
    again = Word("me", done=[(0, 1), (0, 2)])
    finished.heard(again, Heard(refused=[(0, 2)]))
    for _ in range(3):
        finished.heard(again, Heard(refused=[(0, 1), (0, 2)]))
        assert finished.still(again.done) == {(0, 2)}


def test_a_topic_that_was_made_anew_has_other_messages_at_these_places() -> None:
    finished = Finished()
    finished.heard(Word("me", 6.0, topic="first"), Heard())
    finished.heard(Word("me", done=[(0, 1)]), Heard())
    finished.heard(Word("me again", 6.0, topic="first"), Heard())
    assert finished.still([(0, 1)]) == set()
    finished.heard(Word("me at last", 6.0, topic="second"), Heard())
    assert finished.still([(0, 1)]) == {(0, 1)}


def test_the_newest_are_remembered() -> None:
    finished = Finished()
    for at in range(MOST + 2):
        finished.heard(Word("me", done=[(0, at)]), Heard())
    assert MOST == 10_000
    assert finished.still((0, at) for at in range(MOST + 2)) == {(0, 0), (0, 1)}
