"""What a language model is to Hivewire: a request in, an answer out, whole or in pieces."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Callable, Sequence
from types import TracebackType
from typing import Any, Literal, Self

import msgspec

from hivewire.errors import BadAnswer

FinishReason = Literal["stop", "length", "tool_calls", "content_filter", "other"]
"""Why the model ended: it was done; the limit of tokens; it asks for tools; the provider refused; anything else."""


class Tool(msgspec.Struct, frozen=True, kw_only=True):
    """Something the model may ask for. `parameters` is the JSON schema of an object."""

    name: str
    description: str = ""
    parameters: dict[str, Any] = msgspec.field(default_factory=lambda: {"type": "object", "properties": {}})


class ToolCall(msgspec.Struct, frozen=True, kw_only=True):
    """The model asks for a tool. `arguments` is JSON as the model wrote it: data from outside, not yet checked."""

    id: str
    name: str
    arguments: str = "{}"

    def decoded(self) -> dict[str, Any]:
        """The arguments as an object. Raises `BadAnswer` when they are none."""
        found = _decoded(self.arguments or "{}", f"the arguments of tool {self.name!r}")
        if not isinstance(found, dict):
            raise BadAnswer(f"the arguments of tool {self.name!r} are not a JSON object: {self.arguments[:200]!r}")
        return found


class Turn(msgspec.Struct, frozen=True, kw_only=True):
    """One turn of a conversation. Role "tool": `text` is the result of the call named by `tool_call_id`."""

    role: Literal["user", "assistant", "tool"]
    text: str = ""
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: str | None = None


class CompletionRequest(msgspec.Struct, frozen=True, kw_only=True):
    """What the model is asked. `user` is the last turn, after those in `turns`.

    What is None is left to the client's defaults or the provider's. `schema` asks for an answer that is JSON of this
    schema: `CompletionResponse.data` reads it. `timeout_s` bounds the whole of `complete`, and the wait for each
    piece of `stream`.
    """

    user: str = ""
    system: str = ""
    turns: tuple[Turn, ...] = ()
    temperature: float | None = None
    max_tokens: int | None = None
    model: str | None = None
    tools: tuple[Tool, ...] = ()
    schema: dict[str, Any] | None = None
    stop: tuple[str, ...] = ()
    timeout_s: float | None = None

    def conversation(self) -> Sequence[Turn]:
        """All turns, `user` included."""
        return (*self.turns, Turn(role="user", text=self.user)) if self.user or not self.turns else self.turns


class Usage(msgspec.Struct, frozen=True, kw_only=True):
    """Tokens, as the provider counted them; zero where it did not say."""

    input_tokens: int = 0
    output_tokens: int = 0

    @property
    def total_tokens(self) -> int:
        return self.input_tokens + self.output_tokens


class CompletionResponse(msgspec.Struct, frozen=True, kw_only=True):
    """The model's answer."""

    text: str = ""
    tool_calls: tuple[ToolCall, ...] = ()
    finish_reason: FinishReason = "stop"
    usage: Usage = Usage()
    model: str = ""

    @property
    def tokens_used(self) -> int:
        return self.usage.total_tokens

    def data(self) -> Any:
        """The text as JSON, as `CompletionRequest.schema` asks for. Raises `BadAnswer`."""
        if self.finish_reason == "length":
            raise BadAnswer("the model's JSON was cut off at the limit of tokens; raise max_tokens")
        return _decoded(self.text, "the model's answer")


class Piece(msgspec.Struct, frozen=True, kw_only=True):
    """A piece of a streamed answer. The last one has `response`, the whole answer, and no text."""

    text: str = ""
    response: CompletionResponse | None = None


class LLM(ABC):
    """A model. Raises `ModelUnavailable` (try later), `ModelRefused` (the request is at fault) and `BadAnswer`."""

    @abstractmethod
    async def complete(self, request: CompletionRequest) -> CompletionResponse:
        """The whole answer. Cancelling ends the request to the provider."""

    @abstractmethod
    def stream(self, request: CompletionRequest) -> AsyncGenerator[Piece]:
        """The answer in pieces as they come. Closing the generator ends the request to the provider."""

    def each_attempt(self, wrap: Callable[[LLM], LLM]) -> LLM:
        """This model with `wrap` around it: where it asks again by itself, around each time that it asks."""
        return wrap(self)

    async def close(self) -> None:
        """Give back connections. Idempotent."""
        return

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()


def _decoded(text: str, what: str) -> Any:
    try:
        return msgspec.json.decode(text)
    except (msgspec.DecodeError, RecursionError) as error:
        raise BadAnswer(f"{what} is not JSON ({error}): {text[:200]!r}") from error
