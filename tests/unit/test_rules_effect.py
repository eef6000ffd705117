"""What follows from what is known of an effect."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hivewire.rules.effect import Noted, follows

TIMES = st.floats(0, 1e9)


def test_it_begins_where_nobody_was() -> None:
    assert follows(None, 0.0) == "begin"


@given(now=TIMES, until=TIMES)
def test_a_result_is_taken_and_what_was_left_is_looked_for_at_any_time(now: float, until: float) -> None:
    assert follows(Noted("done", "a", until), now) == "take"
    assert follows(Noted("left", "a", until), now) == "look"


@given(now=TIMES, until=TIMES)
def test_a_claim_holds_until_its_time(now: float, until: float) -> None:
    assert follows(Noted("claimed", "a", until), now) == ("wait" if now < until else "look")


@pytest.mark.parametrize("noted", [Noted("done", "p7", value=msgspec.Raw(b"[1]")), Noted("claimed", "p7", 3.5)])
def test_it_is_stored_as_a_list(noted: Noted) -> None:
    stored = msgspec.json.encode(noted)
    assert stored in (b'["done","p7",0.0,[1]]', b'["claimed","p7",3.5,null]')
    assert msgspec.json.encode(msgspec.json.decode(stored, type=Noted)) == stored
    with pytest.raises(AttributeError):
        noted.owner = "another"  # type: ignore[misc]  # that is what is tested
