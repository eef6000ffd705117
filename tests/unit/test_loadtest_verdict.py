"""The last line of a load test says no more than was seen."""

from __future__ import annotations

from argparse import Namespace
from typing import Any

import pytest

from hivewire.cli.loadtest import in_words, result_of
from hivewire.cli.loadtest_run import LoadTest, Plan


def _said(confirmed: int, lost: int) -> tuple[dict[str, Any], str]:
    plan = Plan(
        rate=10,
        duration_s=1.0,
        workers=1,
        processes=1,
        keys=10,
        size_bytes=0,
        work_s=0.0,
        kill=False,
        drain_s=1.0,
    )
    test = LoadTest(Namespace(), plan)
    for number in range(confirmed):
        test.tally.confirm(number, 0)
    test.counts.lost = lost
    result = result_of(test, plan)
    return result, in_words(result, plan).splitlines()[-1]


@pytest.mark.parametrize(
    ("confirmed", "lost", "ok", "last"),
    [
        (10, 0, True, "the promise held"),
        (4, 0, True, "the promise held for the 4 messages that were confirmed, of 10"),
        (10, 1, False, "THE PROMISE BROKE"),
        (4, 1, False, "THE PROMISE BROKE for the 4 messages that were confirmed, of 10"),
        (0, 0, False, "NOTHING WAS TESTED: no message was confirmed"),
    ],
)
def test_the_verdict_is_about_what_was_confirmed(confirmed: int, lost: int, ok: bool, last: str) -> None:
    result, said = _said(confirmed, lost)
    assert (result["ok"], said) == (ok, last)
