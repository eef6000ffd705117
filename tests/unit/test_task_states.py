"""The statuses of tasks: what is finished stays finished, and what is open can be finished."""

from __future__ import annotations

from hivewire.rules.task_states import FINISHED, FOLLOWERS, OPEN, TaskStatus, may_follow, sources


def test_every_status_is_open_or_finished() -> None:
    assert sorted((*OPEN, *FINISHED)) == sorted(TaskStatus)
    assert FOLLOWERS.keys() == set(TaskStatus)


def test_what_is_completed_or_cancelled_stays_so() -> None:
    for after in TaskStatus:
        assert not may_follow(TaskStatus.COMPLETED, after)
        assert not may_follow(TaskStatus.CANCELLED, after)
        assert may_follow(TaskStatus.FAILED, after) == (after is TaskStatus.PENDING)


def test_what_is_open_can_be_finished_in_every_way() -> None:
    assert all(may_follow(before, after) for before in OPEN for after in FINISHED)


def test_sources_are_the_other_way_round() -> None:
    for after in TaskStatus:
        assert set(sources(after)) == {before for before in TaskStatus if after in FOLLOWERS[before]}
