"""What is known of an effect that must happen once, and what follows from it."""

from __future__ import annotations

from typing import Literal

import msgspec

State = Literal["claimed", "left", "done"]
Next = Literal["begin", "look", "wait", "take"]


class Noted(msgspec.Struct, frozen=True, array_like=True):
    """`claimed`: somebody is at it until `until`, by the store's clock, unless it is renewed. `left`: an attempt ended
    without a result. `done`: `value` is its result."""

    state: State
    owner: str
    """Who noted it: one call, in one process."""
    until: float = 0.0
    value: msgspec.Raw = msgspec.Raw(b"null")


def follows(noted: Noted | None, now: float) -> Next:
    """What an attempt does next: `begin` (nobody was here), `look` (an earlier attempt has ended or died, and the
    effect may have happened), `wait` (somebody is at it), `take` (the result is there).

    >>> follows(None, 5.0), follows(Noted("claimed", "a", 9.0), 5.0), follows(Noted("claimed", "a", 5.0), 5.0)
    ('begin', 'wait', 'look')
    """
    if noted is None:
        return "begin"
    if noted.state == "done":
        return "take"
    return "wait" if noted.state == "claimed" and now < noted.until else "look"
