"""When a worker process that ended is started again."""

from hypothesis import given
from hypothesis import strategies as st

from hivewire.rules.restart import CrashLoop


def test_the_pause_doubles_up_to_the_most() -> None:
    loop = CrashLoop(first_s=1, most_s=10, healthy_s=5)
    assert [loop.pause_s(ran_s=0) for _ in range(6)] == [1, 2, 4, 8, 10, 10]


def test_a_healthy_time_forgets_the_crashes_before_it() -> None:
    loop = CrashLoop(first_s=1, most_s=10, healthy_s=5)
    for _ in range(4):
        loop.pause_s(ran_s=4.9)
    assert loop.pause_s(ran_s=5) == 1
    assert loop.pause_s(ran_s=0) == 2


@given(st.lists(st.floats(0, 100), max_size=50))
def test_the_pause_depends_on_the_crashes_since_the_last_healthy_time_alone(ran: list[float]) -> None:
    loop = CrashLoop(first_s=0.5, most_s=30, healthy_s=10)
    in_a_row = 0
    for ran_s in ran:
        in_a_row = 0 if ran_s >= 10 else in_a_row
        expected = 0.5
        for _ in range(in_a_row):
            expected = min(30, expected * 2)
        assert loop.pause_s(ran_s) == expected
        in_a_row += 1


def test_a_process_that_crashes_for_ever_never_overflows_the_pause() -> None:
    loop = CrashLoop(crashes=10_000)
    assert loop.pause_s(ran_s=0) == loop.most_s


def test_what_holds_when_nothing_is_said() -> None:
    loop = CrashLoop()
    assert [loop.pause_s(ran_s=9.9) for _ in range(9)] == [0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 30.0]
    assert loop.pause_s(ran_s=10.0) == 0.25
