"""What the checks of the seeds take for a message that begins anew."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest

from hivewire.testing.seeded_checks import _sent_again


@pytest.mark.parametrize(
    ("story", "again"),
    [
        (["stored", "dead expired"], 0),
        (["stored", "dead max_attempts", "stored"], 1),
        (["stored", "dead expired", "stored", "dead expired", "stored"], 2),
        (["stored", "stored", "dead expired"], 1),  # the second one is none of the first that settles it
        (["stored", "stored", "dead max_attempts"], 0),  # a duplicate from then on
        (["stored", "stored", "stored", "dead expired", "dead expired", "dead expired"], 2),
        (["stored", "dead expired", "dead expired", "stored"], 1),  # one dead letter that was written twice
    ],
)
def test_a_message_begins_anew_as_often_as_a_copy_of_it_outlives_one_that_settled_nothing(
    story: list[str], again: int
) -> None:
    history = [
        SimpleNamespace(queue="q", id="m", replay=0, what=what, detail=detail)
        for what, _, detail in (one.partition(" ") for one in story)
    ]
    result = SimpleNamespace(world=SimpleNamespace(history=history))
    assert _sent_again(cast(Any, result))["q", "m", 0] == again
