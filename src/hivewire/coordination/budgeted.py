"""A model whose calls are paid from budgets."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from typing import Final, NamedTuple

import msgspec

from hivewire.coordination.budgets import Budgets, Reservation, limits_from, read_prices
from hivewire.errors import BudgetExceeded, ModelRefused, ModelUnavailable
from hivewire.llm import LLM, CompletionRequest, CompletionResponse, Piece
from hivewire.protocol import Protocol
from hivewire.rules.budget import FREE, Cost, Limit, Price, shares
from hivewire.settings import Settings

_CHARACTERS_A_TOKEN: Final = 3
"""English text has about four; three keeps the reservation on the safe side."""
_TOKENS_A_TURN: Final = 16
_MAX_TOKENS: Final = 4096


class Spending(msgspec.Struct, frozen=True, kw_only=True):
    """How the calls of a team are paid: limits by scope or kind, prices by model, and what is asked at a limit.
    `is_split`: each subtask may spend its equal share of what its run may, and no more."""

    limits: Mapping[str, Limit] = {}
    prices: Mapping[str, Price] = {}
    model: str = ""
    """The name of the model that a request without one goes to, for its price."""
    cheaper: str | None = None
    is_split: bool = False

    @classmethod
    def of(cls, settings: Settings) -> Spending:
        """As the settings `budget.*` and `llm.model` say."""
        path = settings.budget.price_file
        return cls(
            limits=limits_from(settings),
            prices=read_prices(path) if path is not None else {},
            model=(settings.llm.model or "").partition(":")[2],
            cheaper=settings.budget.cheaper,
            is_split=settings.budget.is_split,
        )

    def pay(self, llm: LLM, protocol: Protocol, scopes: Sequence[str]) -> LLM:
        """The model, its calls paid from accounts in the protocol's store."""
        budgets = Budgets(protocol, self.limits)
        return Budgeted(llm, budgets, scopes, model=self.model, prices=self.prices, cheaper=self.cheaper)

    def of_subtask(self, run: str, subtask: str, subtasks: int) -> Spending:
        """The same with the limit of one subtask of so many: the smallest of equal shares."""
        if not self.is_split or "run" not in self.limits or subtasks < 1:
            return self
        parts = shares(self.limits["run"], {str(number): 1.0 for number in range(subtasks)})
        limits = {**self.limits, f"run/{run}/{subtask}": parts[str(subtasks - 1)]}
        return msgspec.structs.replace(self, limits=limits)


class Budgeted(LLM):
    """Reserves what a call may cost at most, asks `llm`, and settles what it did cost.

    A model that asks its provider again by itself (`Resilient`) pays for each attempt. `max_tokens` bounds the answer;
    a request that names none is given 4,096. A model without a price costs tokens and calls, and no money. At the limit
    it raises `BudgetExceeded`, or asks for `cheaper` (a model's name) as long as that can be paid. A call that was
    cancelled, whose process died, or whose provider had it and did not answer, counts with all that was reserved.
    """

    def __init__(
        self,
        llm: LLM,
        budgets: Budgets,
        scopes: Sequence[str],
        *,
        model: str = "",
        prices: Mapping[str, Price] | None = None,
        cheaper: str | None = None,
    ) -> None:
        terms = _Terms(budgets, tuple(scopes), model, dict(prices or {}), cheaper)
        self._llm = llm.each_attempt(lambda one: _Paid(one, terms))

    async def complete(self, request: CompletionRequest) -> CompletionResponse:
        return await self._llm.complete(request)

    def stream(self, request: CompletionRequest) -> AsyncGenerator[Piece]:
        return self._llm.stream(request)

    async def close(self) -> None:
        await self._llm.close()


class _Terms(NamedTuple):
    budgets: Budgets
    scopes: tuple[str, ...]
    model: str
    prices: Mapping[str, Price]
    cheaper: str | None


class _Paid(LLM):
    """A model whose every call is one attempt."""

    def __init__(self, llm: LLM, terms: _Terms) -> None:
        self._llm = llm
        self._terms = terms
        self._budgets = terms.budgets

    async def complete(self, request: CompletionRequest) -> CompletionResponse:
        request, reservation = await self._reserved(request)
        try:
            response = await self._llm.complete(request)
        except BaseException as error:
            await asyncio.shield(self._failed(reservation, error))
            raise
        await asyncio.shield(self._budgets.settle(reservation, self._cost(request, response)))
        return response

    async def stream(self, request: CompletionRequest) -> AsyncGenerator[Piece]:
        request, reservation = await self._reserved(request)
        cost: Cost | None = reservation.cost
        has_begun = False
        try:
            async with aclosing(self._llm.stream(request)) as pieces:
                async for piece in pieces:
                    has_begun = True
                    if piece.response is not None:
                        cost = self._cost(request, piece.response)
                    yield piece
        except (ModelUnavailable, ModelRefused) as error:
            cost = reservation.cost if has_begun or _may_cost(error) else None
            raise
        finally:
            done = self._budgets.release(reservation) if cost is None else self._budgets.settle(reservation, cost)
            await asyncio.shield(done)

    async def close(self) -> None:
        await self._llm.close()

    async def _failed(self, reservation: Reservation, error: BaseException) -> None:
        if _may_cost(error):
            await self._budgets.settle(reservation, reservation.cost)
        else:
            await self._budgets.release(reservation)

    async def _reserved(self, request: CompletionRequest) -> tuple[CompletionRequest, Reservation]:
        request = msgspec.structs.replace(request, max_tokens=request.max_tokens or _MAX_TOKENS)
        try:
            return request, await self._budgets.reserve(self._terms.scopes, self._most(request))
        except BudgetExceeded:
            if self._terms.cheaper is None or request.model == self._terms.cheaper:
                raise
        request = msgspec.structs.replace(request, model=self._terms.cheaper)
        return request, await self._budgets.reserve(self._terms.scopes, self._most(request))

    def _price(self, request: CompletionRequest) -> Price:
        return self._terms.prices.get(request.model or self._terms.model, FREE)

    def _most(self, request: CompletionRequest) -> Cost:
        """What the call may cost at most, by the length of what is sent."""
        turns = request.conversation()
        sent = len(request.system) + len(msgspec.json.encode((request.tools, request.schema)))
        sent += sum(len(turn.text) + sum(len(call.arguments) for call in turn.tool_calls) for turn in turns)
        tokens = sent // _CHARACTERS_A_TOKEN + _TOKENS_A_TURN * (len(turns) + 1)
        return self._price(request).cost(tokens, request.max_tokens or _MAX_TOKENS)

    def _cost(self, request: CompletionRequest, response: CompletionResponse) -> Cost:
        usage = response.usage
        if not usage.total_tokens:  # the server does not count
            return self._most(request)
        return self._price(request).cost(usage.input_tokens, usage.output_tokens)


def _may_cost(error: BaseException) -> bool:
    """Whether the provider may have worked on a call that ended so."""
    return not isinstance(error, ModelRefused) and not (isinstance(error, ModelUnavailable) and not error.may_cost)
