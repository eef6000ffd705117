"""The books of a load test, against a slow and obvious count of the same events."""

from __future__ import annotations

from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from hivewire.cli.loadtest_tally import Handled, Tally, count_handled, read_handled

KEYS = 3
MESSAGES = st.tuples(st.integers(0, KEYS - 1), st.integers(0, 20))


@given(confirmed=st.sets(MESSAGES), handled=st.lists(MESSAGES, max_size=80))
def test_every_message_is_accounted_for(confirmed: set[tuple[int, int]], handled: list[tuple[int, int]]) -> None:
    tally = Tally(KEYS, start_ns=0)
    for key, number in confirmed:
        tally.confirm(key, number)
    for at, (key, number) in enumerate(handled):
        tally.handle(Handled(at, key, number, 0))
    first_seen = list(dict.fromkeys(handled))
    late = [
        (key, number)
        for at, (key, number) in enumerate(first_seen)
        if any(other == key and later > number for other, later in first_seen[:at])
    ]
    assert set(tally.missing()) == confirmed - set(handled)
    assert tally.confirmed == len(confirmed)
    assert tally.handled == tally.latency_us.count == len(first_seen)
    assert tally.duplicates == len(handled) - len(first_seen)
    assert tally.out_of_order == len(late)


def test_the_latency_counts_from_when_the_message_was_due() -> None:
    tally = Tally(1, start_ns=10_000_000_000)
    tally.handle(Handled(started_ns=12_500_000_000, key=0, number=0, intended_ns=11_000_000_000))
    assert tally.latency_us.most == 1_500_000
    assert tally.seconds[1].latency_us.count == 1
    assert tally.seconds[2].handled == [1]


def test_records_survive_a_process_that_was_killed_while_writing(tmp_path: Path) -> None:
    records = [Handled(1_000 + n, n % 7, n, 5) for n in range(10_000)]
    file = tmp_path / "handled"
    file.write_bytes(b"".join(record.packed() for record in records) + records[0].packed()[:11])
    assert list(read_handled(file)) == records
    assert count_handled(file) == 10_000
    assert count_handled(tmp_path / "not-there") == 0
