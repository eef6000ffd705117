"""A model that says what a test tells it to."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Sequence
from typing import Any

import msgspec

from hivewire.errors import ModelRefused
from hivewire.llm.contract import LLM, CompletionRequest, CompletionResponse, Piece, Usage

Answer = str | dict[str, Any] | CompletionResponse | BaseException
"""A text; an object, given as JSON; a whole response; or what is raised."""


class ScriptedModel(LLM):
    """Gives the answers in their order, and keeps what it was asked in `requests`.

    Instead of a list, a function of the request gives each answer. A list that is used up refuses: a test that asks
    once too often must see it. Tokens are counted as words.

    >>> ScriptedModel(["first", {"rating": 4}]).left
    2
    """

    def __init__(self, script: Sequence[Answer] | Callable[[CompletionRequest], Answer]) -> None:
        self.requests: list[CompletionRequest] = []
        self._answers = None if callable(script) else list(script)
        self._choose = script if callable(script) else None

    @property
    def left(self) -> int:
        """How many answers were not asked for yet."""
        return len(self._answers or ())

    async def complete(self, request: CompletionRequest) -> CompletionResponse:
        self.requests.append(request)
        return _response(request, self._next(request))

    async def stream(self, request: CompletionRequest) -> AsyncGenerator[Piece]:
        self.requests.append(request)
        response = _response(request, self._next(request))
        for line in response.text.splitlines(keepends=True):
            yield Piece(text=line)
        yield Piece(response=response)

    def _next(self, request: CompletionRequest) -> Answer:
        if self._choose is not None:
            return self._choose(request)
        if not self._answers:
            raise ModelRefused(f"the script has no answer left for {request.user[:100]!r}")
        return self._answers.pop(0)


def _response(request: CompletionRequest, answer: Answer) -> CompletionResponse:
    if isinstance(answer, BaseException):
        raise answer
    if isinstance(answer, CompletionResponse):
        return answer
    text = answer if isinstance(answer, str) else msgspec.json.encode(answer).decode()
    asked = f"{request.system} {' '.join(turn.text for turn in request.conversation())}"
    usage = Usage(input_tokens=len(asked.split()), output_tokens=len(text.split()))
    return CompletionResponse(text=text, usage=usage, model=request.model or "scripted")
