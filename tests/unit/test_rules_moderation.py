"""When to rest before more is asked for: stretches of traffic against what rests are for."""

from __future__ import annotations

from itertools import groupby, pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hivewire.rules.moderation import Moderation

REST_S = 0.001


class Traffic:
    """A consumer that asks as soon as it may, and what it gets. A question takes `trip_s`."""

    def __init__(self, trip_s: float = 0.0001) -> None:
        self.moderation = Moderation()
        self.now = 0.0
        self.trip_s = trip_s
        self.rest_s = self.owed = 0.0
        self.rests: list[bool] = []

    def batch(self, came: int, seconds: float) -> float:
        self.now += seconds
        self.rest_s = self.moderation.after(came, self.now)
        self.rests.append(self.rest_s > 0)
        return self.rest_s

    def open(self, rate: float, batches: int) -> None:
        """Senders that wait for nobody: so many messages a second, however they are asked for."""
        for _ in range(batches):
            seconds = max(self.rest_s + self.trip_s, (1.0 - self.owed) / rate)
            self.owed += rate * seconds
            self.batch(round(self.owed), seconds)
            self.owed -= round(self.owed)

    def closed(self, senders: int, batches: int) -> None:
        """Each of some senders waits for an answer before it sends again."""
        for _ in range(batches):
            self.batch(senders, self.rest_s + self.trip_s * senders)

    def share(self, last: int) -> float:
        """Of the last batches, after how many it rested."""
        return sum(self.rests[-last:]) / last


def test_many_small_batches_of_senders_that_wait_for_nobody_lead_to_rests() -> None:
    traffic = Traffic()
    traffic.open(rate=8_000, batches=64)
    assert not any(traffic.rests)  # not before it is seen
    traffic.open(rate=8_000, batches=20_000)
    assert traffic.share(10_000) > 0.9
    stretches = [(rested, len(list(stretch))) for rested, stretch in groupby(traffic.rests)]
    assert {length for rested, length in stretches[:-1] if not rested} == {64}  # how it is without is looked at anew
    tried, *trusted = [length for rested, length in stretches[:-1] if rested]
    assert tried == 16
    assert all(length == pytest.approx(1 / (REST_S + traffic.trip_s), rel=0.01) for length in trusted)


@pytest.mark.parametrize("senders", [1, 2, 3, 5, 7])
def test_who_waits_for_answers_is_not_slowed_down_for_long(senders: int) -> None:
    traffic = Traffic(trip_s=0.00005)
    traffic.closed(senders, batches=30_000)
    assert 0 < sum(traffic.rests) <= 16 * 4  # some tries, ever less often


def test_tries_that_did_not_pay_come_ever_less_often_and_one_that_pays_makes_all_well() -> None:
    traffic = Traffic(trip_s=0.0004)
    tries_at: list[float] = []
    while traffic.now < 130:
        traffic.closed(1, batches=1)
        if traffic.rests[-1] and not (len(traffic.rests) > 1 and traffic.rests[-2]):
            tries_at.append(traffic.now)
    gaps = [later - earlier for earlier, later in pairwise(tries_at)]
    assert gaps[0] == pytest.approx(1.0, abs=0.1)
    assert gaps[:6] == pytest.approx([1, 2, 4, 8, 16, 32], rel=0.1)
    assert gaps[6:] == pytest.approx([60] * len(gaps[6:]), rel=0.1)
    while not traffic.share(2_000) > 0.9:  # the senders wait no more: at the next try it is seen
        traffic.open(rate=5_000, batches=2_000)
        assert traffic.now < 400
    traffic.closed(1, batches=3_000)
    assert traffic.share(100) == 0  # and given up as soon as it does not pay
    began = traffic.now
    while not traffic.rests[-1]:
        traffic.closed(1, batches=1)
    assert traffic.now - began < 1.1  # with the shortest wait again


def test_rare_batches_are_never_rested_after() -> None:
    traffic = Traffic()
    for _ in range(10_000):
        traffic.batch(1, 0.000505)
    assert not any(traffic.rests)


def test_large_batches_are_never_rested_after() -> None:
    traffic = Traffic()
    for _ in range(10_000):
        traffic.batch(8, 0.0001)
    assert not any(traffic.rests)


@pytest.mark.parametrize(("sizes", "rests"), [([8] * 64, False), ([7] + [8] * 63, True)])
def test_a_stretch_with_one_message_less_is_of_small_batches(sizes: list[int], rests: bool) -> None:
    traffic = Traffic()
    for _ in range(3):  # the first stretch begins with a batch that counts no more than the end of the last one
        traffic.batch(8, 0.0001)
        for came in [8] * 63:
            traffic.batch(came, 0.0001)
    traffic.batch(8, 0.0001)
    for came in sizes:
        traffic.batch(came, 0.0001)
    assert traffic.rests[-1] is rests
    first = Traffic()
    first.batch(8, 0.0001)
    for came in sizes:
        first.batch(came, 0.0001)
    assert first.rests[-1] is rests


def test_where_much_waits_nobody_rests_though_rests_pay() -> None:
    traffic = Traffic()
    traffic.open(rate=8_000, batches=1_000)
    assert traffic.rests[-1]
    assert traffic.batch(32, 0.001) == 0
    assert traffic.batch(31, 0.001) == REST_S


@given(batches=st.lists(st.tuples(st.integers(1, 1_000), st.floats(0, 10)), max_size=400))
def test_a_rest_is_short_and_time_that_stands_still_breaks_nothing(batches: list[tuple[int, float]]) -> None:
    moderation, now = Moderation(), 0.0
    for came, seconds in batches:
        now += seconds
        assert moderation.after(came, now) in (0.0, REST_S)


@given(came=st.integers(1, 7), seconds=st.sampled_from([0.0, 0.0001]))
def test_no_rest_before_as_many_batches_as_are_measured(came: int, seconds: float) -> None:
    moderation = Moderation()
    rests = [moderation.after(came, number * seconds) for number in range(200)]
    first = next((place for place, rest_s in enumerate(rests) if rest_s), None)
    assert first == (64 if seconds else None)  # with no time between them there is no rate to compare
