"""Budgets that all workers share: kept in the protocol's store, so that they survive restarts."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import msgspec

from hivewire.errors import BudgetExceeded, SettingsError
from hivewire.ids import new_id
from hivewire.protocol import Protocol
from hivewire.rules.budget import Account, Cost, Limit, Price, Refusal
from hivewire.settings import Settings

_PREFIX: Final = "budget/"
_LEASE_S: Final = 600.0
_KEEP_S: Final = 400 * 86_400.0
_MOST_PAUSE_S: Final = 0.05


class Reservation(msgspec.Struct, frozen=True):
    """An amount held in several accounts, until it is settled or released."""

    id: str
    scopes: tuple[str, ...]
    cost: Cost


class Spent(msgspec.Struct, frozen=True, kw_only=True):
    """A line of a summary."""

    scope: str
    tokens: int
    money: float
    calls: int
    reserved_tokens: int
    reserved_money: float
    limit: Limit | None


class Budgets:
    """Accounts by scope, with limits.

    Scopes are names such as `run/273ed2`, `run/273ed2/write`, `label/research`; the present `day/2026-11-25` and
    `month/2026-11` (UTC) are added to each reservation. `limits` are by scope (`label/research`), or by kind (`run`,
    `day`) for every scope of one name below it. A scope without a limit is counted all the same. Accounts are kept for
    400 days after their last change.
    """

    def __init__(
        self,
        protocol: Protocol,
        limits: Mapping[str, Limit],
        *,
        lease_s: float = _LEASE_S,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._protocol = protocol
        self._limits = dict(limits)
        self._lease_s = lease_s
        self._clock = clock
        self._rng = random.Random()

    def limit_of(self, scope: str) -> Limit | None:
        kind, _, rest = scope.partition("/")
        return self._limits.get(scope) or (self._limits.get(kind) if "/" not in rest else None)

    async def reserve(self, scopes: Sequence[str], wanted: Cost) -> Reservation:
        """Hold the amount in every account. Raises `BudgetExceeded`, with nothing held."""
        now = self._clock()
        today = datetime.fromtimestamp(now, UTC)
        every = tuple(sorted({*scopes, f"day/{today:%Y-%m-%d}", f"month/{today:%Y-%m}"}))
        reservation = Reservation(new_id(), every, wanted)
        held: list[str] = []
        try:
            for scope in every:
                held.append(scope)  # a cancel may come when it is stored already
                refusal = await self._hold(scope, reservation, now)
                if refusal is not None:
                    raise BudgetExceeded(_told(scope, refusal), scope=scope, what=refusal.what)
        except BaseException:
            for scope in held:
                await asyncio.shield(self._change(scope, lambda account: account.release(reservation.id)))
            raise
        return reservation

    async def _hold(self, scope: str, reservation: Reservation, now: float) -> Refusal | None:
        limit = self.limit_of(scope)
        return await self._change(
            scope, lambda account: account.reserve(reservation.id, reservation.cost, limit, now, self._lease_s)
        )

    async def settle(self, reservation: Reservation, cost: Cost) -> None:
        """The call cost this much."""
        for scope in reservation.scopes:
            await self._change(scope, lambda account: account.settle(reservation.id, cost))

    async def release(self, reservation: Reservation) -> None:
        """The call was not made, or not answered at the provider's fault: it costs nothing."""
        for scope in reservation.scopes:
            await self._change(scope, lambda account: account.release(reservation.id))

    async def summary(self, prefix: str = "") -> list[Spent]:
        """What was spent, by scope: `day/` for the days, `month/` for the months, "" for everything."""
        lines = []
        for name, value in (await self._protocol.values(_PREFIX + prefix)).items():
            scope, account = name[len(_PREFIX) :], msgspec.json.decode(value.data, type=Account)
            account.expire(self._clock())
            lines.append(
                Spent(
                    scope=scope,
                    tokens=account.spent.tokens,
                    money=account.spent.money,
                    calls=account.spent.calls,
                    reserved_tokens=account.reserved.tokens,
                    reserved_money=account.reserved.money,
                    limit=self.limit_of(scope),
                )
            )
        return sorted(lines, key=lambda line: line.scope)

    async def _account(self, scope: str) -> tuple[Account, int]:
        value = await self._protocol.value(_PREFIX + scope)
        return (msgspec.json.decode(value.data, type=Account) if value.version else Account()), value.version

    async def _change(self, scope: str, change: Callable[[Account], Refusal | None]) -> Refusal | None:
        """By whoever is fastest; the others look again."""
        pause_s = 0.001
        while True:
            account, version = await self._account(scope)
            refusal = change(account)
            if refusal is not None:
                return refusal
            data = msgspec.json.encode(account)
            if await self._protocol.set_value(_PREFIX + scope, data, version, ttl_s=_KEEP_S) is not None:
                return None
            await asyncio.sleep(pause_s * self._rng.random())
            pause_s = min(pause_s * 2, _MOST_PAUSE_S)


def _told(scope: str, refusal: Refusal) -> str:
    return (
        f"budget of {scope}: {refusal.what} {refusal.used:g} of {refusal.limit:g} are used or reserved, and "
        f"{refusal.asked:g} more were asked for; raise the limit or wait for the next {scope.partition('/')[0]}"
    )


def limits_from(settings: Settings) -> dict[str, Limit]:
    """The limits that the settings `budget.*` name, by kind."""
    wanted = settings.budget
    found = {
        "run": Limit(
            tokens=wanted.run_tokens, money=wanted.run_money, calls=wanted.run_calls, wall_s=wanted.run_wall_s
        ),
        "day": Limit(tokens=wanted.day_tokens, money=wanted.day_money),
        "month": Limit(tokens=wanted.month_tokens, money=wanted.month_money),
    }
    return {kind: limit for kind, limit in found.items() if limit != Limit()}


def read_prices(path: str | Path) -> dict[str, Price]:
    """A price file: JSON, by model `{"input": 2.5, "output": 10}` in money for a million tokens.

    Raises `SettingsError`.
    """
    try:
        return msgspec.json.decode(Path(path).read_bytes(), type=dict[str, Price])
    except (OSError, msgspec.MsgspecError) as error:
        raise SettingsError(f"price file {path}: {error}; it is JSON: {{MODEL: {{input: …, output: …}}}}") from error
