"""What may still be spent: amounts are reserved before a call and settled after it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Final

import msgspec

NANO: Final = 1_000_000_000
"""Money is counted in billionths of its unit, as whole numbers, so that sums do not depend on their order."""


class Cost(msgspec.Struct, frozen=True, array_like=True):
    """What a call costs, or may cost at most. `money_nano` is in billionths of the price file's currency."""

    tokens: int = 0
    money_nano: int = 0
    calls: int = 0

    def __add__(self, other: Cost) -> Cost:
        return Cost(self.tokens + other.tokens, self.money_nano + other.money_nano, self.calls + other.calls)

    @property
    def money(self) -> float:
        return self.money_nano / NANO


class Limit(msgspec.Struct, frozen=True, kw_only=True):
    """The most that may be spent; None: no limit. `wall_s` counts from the first reservation."""

    tokens: int | None = None
    money: float | None = None
    calls: int | None = None
    wall_s: float | None = None


class Refusal(msgspec.Struct, frozen=True):
    """Why a reservation was refused: which limit, how much is used or reserved, and what was asked for."""

    what: str
    limit: float
    used: float
    asked: float


class Held(msgspec.Struct, array_like=True):
    """A reservation, and when its holder counts as dead."""

    cost: Cost
    ends_at: float


class Account(msgspec.Struct):
    """What one scope has spent and reserved.

    Invariant: after each reservation that was granted, spent + reserved is within the limit. A reservation whose holder
    died counts as spent: the provider may have answered. So the limit is passed at most by what calls cost beyond
    their own reservation.
    """

    spent: Cost = Cost()
    held: dict[str, Held] = {}
    began_at: float | None = None

    @property
    def reserved(self) -> Cost:
        return sum((held.cost for held in self.held.values()), Cost())

    def expire(self, now: float) -> None:
        """Count as spent what was reserved by those who died."""
        for name in [name for name, held in self.held.items() if held.ends_at <= now]:
            self.spent += self.held.pop(name).cost

    def reserve(self, name: str, wanted: Cost, limit: Limit | None, now: float, lease_s: float) -> Refusal | None:
        """Hold `wanted`, under a name that is not held yet, until it is settled or `lease_s` has passed."""
        self.expire(now)
        refusal = self._refusal(wanted, limit, now)
        if refusal is None:
            self.held[name] = Held(wanted, now + lease_s)
            if self.began_at is None:
                self.began_at = now
        return refusal

    def _refusal(self, wanted: Cost, limit: Limit | None, now: float) -> Refusal | None:
        if limit is None:
            return None
        used = self.spent + self.reserved
        amounts = (
            ("tokens", limit.tokens, used.tokens, wanted.tokens),
            ("money", limit.money, used.money, wanted.money),
            ("calls", limit.calls, used.calls, wanted.calls),
        )
        for what, most, before, more in amounts:
            if most is not None and before + more > most:
                return Refusal(what, most, before, more)
        if limit.wall_s is not None and self.began_at is not None and now - self.began_at > limit.wall_s:
            return Refusal("wall_s", limit.wall_s, now - self.began_at, 0.0)
        return None

    def settle(self, name: str, cost: Cost) -> None:
        """The call cost this much. One whose reservation has ended was counted already, at what was reserved."""
        if self.held.pop(name, None) is not None:
            self.spent += cost

    def release(self, name: str) -> None:
        """The call was not made."""
        self.held.pop(name, None)


class Price(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Of one model, in money for a million tokens."""

    input: Annotated[float, msgspec.Meta(ge=0)]
    output: Annotated[float, msgspec.Meta(ge=0)]

    def cost(self, input_tokens: int, output_tokens: int) -> Cost:
        """Of one call. Rounded up to a billionth.

        >>> Price(2.5, 10.0).cost(1_000, 100)
        Cost(tokens=1100, money_nano=3500000, calls=1)
        """
        nano = (input_tokens * self.input + output_tokens * self.output) * (NANO / 1_000_000)
        return Cost(input_tokens + output_tokens, -int(-nano // 1), 1)


FREE: Final = Price(0.0, 0.0)


def shares(total: Limit, weights: Mapping[str, float]) -> dict[str, Limit]:
    """The limit split over subtasks by weight; what cannot be divided goes to the first. Wall time is not split: they
    run side by side.

    >>> shares(Limit(tokens=10), {"a": 1, "b": 2})["b"].tokens
    6
    """
    names: Sequence[str] = tuple(weights)
    whole = sum(weights.values())
    if not names or whole <= 0 or min(weights.values()) < 0:
        raise ValueError("a split needs weights, none of them negative, and not all zero")
    tokens = _parts(total.tokens, weights, whole)
    calls = _parts(total.calls, weights, whole)
    return {
        name: Limit(
            tokens=tokens.get(name),
            money=None if total.money is None else total.money * weights[name] / whole,
            calls=calls.get(name),
            wall_s=total.wall_s,
        )
        for name in names
    }


def _parts(total: int | None, weights: Mapping[str, float], whole: float) -> dict[str, int]:
    if total is None:
        return {}
    parts = {name: int(total * weight / whole) for name, weight in weights.items()}
    parts[next(iter(parts))] += total - sum(parts.values())
    return parts
