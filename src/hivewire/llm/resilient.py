"""A model that is asked again when it is not available, and left alone when it keeps failing."""

from __future__ import annotations

import asyncio
import math
import random
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from copy import copy
from typing import Final

import msgspec

from hivewire.errors import BadAnswer, HivewireError, ModelUnavailable
from hivewire.llm.contract import LLM, CompletionRequest, CompletionResponse, Piece
from hivewire.rules.breaker import Breaker
from hivewire.rules.retry import Retry

_SHORTEST_S: Final = 0.001


class Resilient(LLM):
    """Asks `llm` again after `ModelUnavailable` and `BadAnswer`, by `retry`; no sooner than the provider's Retry-After.

    When it asks for more than `retry.most_s`, or the attempts are used up, or the next one would begin after the
    request's `timeout_s`, the error goes to the caller, with `retry_after_s`. A stream is only begun again while
    nothing of it was handed out. Rate limits do not count against the breaker: the provider works. While the breaker is
    open, calls fail at once.
    """

    def __init__(
        self,
        llm: LLM,
        *,
        retry: Retry = Retry(max_attempts=4, first_s=1.0, most_s=30.0),  # noqa: B008  # it is frozen
        breaker: Breaker | None = None,
        clock: Callable[[], float] | None = None,
        rng: random.Random | None = None,
    ) -> None:
        self._llm = llm
        self._retry = retry
        self._breaker = breaker or Breaker()
        self._clock = clock
        self._rng = rng or random.Random()

    async def complete(self, request: CompletionRequest) -> CompletionResponse:
        failures = 0
        ends_at = math.inf if request.timeout_s is None else self._now() + request.timeout_s
        while True:
            self._begin()
            try:
                response = await self._llm.complete(request)
            except (ModelUnavailable, BadAnswer) as error:
                failures += 1
                await self._failed(error, failures, ends_at)
                if request.timeout_s is not None:  # it bounds all attempts together
                    request = msgspec.structs.replace(request, timeout_s=max(ends_at - self._now(), _SHORTEST_S))
            except BaseException:
                self._breaker.left()
                raise
            else:
                self._breaker.succeeded()
                return response

    async def stream(self, request: CompletionRequest) -> AsyncGenerator[Piece]:
        failures = 0
        while True:
            self._begin()
            has_begun = False
            try:
                async with aclosing(self._llm.stream(request)) as pieces:
                    async for piece in pieces:
                        has_begun = True
                        yield piece
            except (ModelUnavailable, BadAnswer) as error:
                failures += 1
                await self._failed(error, self._retry.max_attempts if has_begun else failures)
            except BaseException:
                self._breaker.left()
                raise
            else:
                self._breaker.succeeded()
                return

    def each_attempt(self, wrap: Callable[[LLM], LLM]) -> LLM:
        """The breaker is shared: the provider is one."""
        other = copy(self)
        other._llm = self._llm.each_attempt(wrap)
        return other

    async def close(self) -> None:
        await self._llm.close()

    def _now(self) -> float:
        return asyncio.get_running_loop().time() if self._clock is None else self._clock()

    def _begin(self) -> None:
        now = self._now()
        if not self._breaker.begin(now):
            wait_s = self._breaker.wait_s(now)
            raise ModelUnavailable(
                f"the model failed too often in a row; it is left alone for {wait_s:.1f} s", retry_after_s=wait_s
            )

    async def _failed(self, error: HivewireError, failures: int, ends_at: float = math.inf) -> None:
        """Wait for the next attempt, or raise."""
        asked_s = 0.0
        if isinstance(error, ModelUnavailable):
            asked_s = error.retry_after_s or 0.0
            if error.is_rate_limit:
                self._breaker.left()
            else:
                self._breaker.failed(self._now())
        else:
            self._breaker.left()
        if failures >= self._retry.max_attempts or asked_s > self._retry.most_s:
            raise error
        wait_s = max(asked_s, self._retry.delay_s(failures, self._rng.random()))
        if self._now() + wait_s >= ends_at:
            raise error
        await asyncio.sleep(wait_s)
