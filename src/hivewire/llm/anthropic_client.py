"""Models behind Anthropic's messages API."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import Annotated, Any

import msgspec

from hivewire.errors import BadAnswer, ModelUnavailable, SettingsError
from hivewire.llm.contract import LLM, CompletionRequest, CompletionResponse, FinishReason, Piece, ToolCall, Turn, Usage
from hivewire.llm.sdk import Asking, each, read

_ANSWER = "answer"
"""The tool through which an answer of a given schema comes: the API has no other way that all its models know."""

_MAX_TOKENS = 4096
"""The API wants a limit; this one is taken when the request names none."""

_FINISHED: dict[str | None, FinishReason] = {
    "end_turn": "stop",
    "stop_sequence": "stop",
    "max_tokens": "length",
    "tool_use": "tool_calls",
    "refusal": "content_filter",
}


_Tokens = Annotated[int, msgspec.Meta(ge=0)]


class _Usage(msgspec.Struct):
    input_tokens: _Tokens | None = None
    output_tokens: _Tokens | None = None
    cache_creation_input_tokens: _Tokens | None = None
    cache_read_input_tokens: _Tokens | None = None


class _Part(msgspec.Struct):
    """A block of an answer, whole or as it begins in a stream."""

    type: str
    id: str = ""
    name: str = ""
    text: str | None = None
    input: Any = None


class _Answer(msgspec.Struct):
    content: list[_Part]
    stop_reason: str | None = None
    usage: _Usage | None = None
    model: str | None = None


class _Delta(msgspec.Struct):
    """What is new: of a block, or of the whole message."""

    type: str | None = None
    text: str = ""
    partial_json: str = ""
    stop_reason: str | None = None


class _Event(msgspec.Struct):
    """Of a stream."""

    type: str
    index: int = 0
    message: _Answer | None = None
    content_block: _Part | None = None
    delta: _Delta | None = None
    usage: _Usage | None = None


class Anthropic(LLM):
    """The official client `anthropic`, without its own retries (`Resilient` repeats).

    `api_key` None: the environment's `ANTHROPIC_API_KEY`; `base_url` None: `ANTHROPIC_BASE_URL`, else Anthropic's own.
    """

    def __init__(
        self,
        model: str,
        *,
        api_key: str | None = None,
        base_url: str | None = None,
        timeout_s: float = 120.0,
    ) -> None:
        try:
            import anthropic
        except ImportError as error:
            raise SettingsError(
                "models of anthropic: need the package anthropic; pip install 'hivewire[anthropic]'"
            ) from error
        self._sdk = anthropic
        self._asking = Asking(anthropic)
        self._model = model
        self._timeout_s = timeout_s
        self._client = anthropic.AsyncAnthropic(api_key=api_key, base_url=base_url, max_retries=0, timeout=timeout_s)
        if self._client.api_key is None and self._client.auth_token is None:
            raise SettingsError(
                "models of anthropic: no key; set ANTHROPIC_API_KEY or llm.api_key (HIVEWIRE_LLM_API_KEY)"
            )

    async def complete(self, request: CompletionRequest) -> CompletionResponse:
        limit_s = self._timeout_s if request.timeout_s is None else request.timeout_s
        doing = f"ask {request.model or self._model}"
        raw = await self._asking.create(self._client.messages.create, self._body(request), request.temperature, limit_s)
        answer = read(raw, _Answer, doing)
        blocks = [_Block.of(part) for part in answer.content]
        return _response(request, blocks, answer.stop_reason, _usage(answer.usage), answer.model)

    async def stream(self, request: CompletionRequest) -> AsyncGenerator[Piece]:
        limit_s = self._timeout_s if request.timeout_s is None else request.timeout_s
        doing = f"ask {request.model or self._model}"
        heard = _Heard()
        body = {**self._body(request), "stream": True}
        events = await self._asking.create(self._client.messages.create, body, request.temperature, limit_s)
        async with aclosing(each(self._sdk, events, doing, limit_s)) as pieces:
            async for raw in pieces:
                text = heard.add(read(raw, _Event, doing), doing)
                if text:
                    yield Piece(text=text)
        if not heard.ended:
            raise ModelUnavailable(f"{doing}: the stream ended in the middle", may_cost=True)
        found = [block for _, block in sorted(heard.blocks.items())]
        yield Piece(response=_response(request, found, heard.reason, heard.usage, heard.model))

    async def close(self) -> None:
        await self._client.close()

    def _body(self, request: CompletionRequest) -> dict[str, Any]:
        body: dict[str, Any] = {
            "model": request.model or self._model,
            "max_tokens": request.max_tokens or _MAX_TOKENS,
            "messages": _messages(request.conversation()),
        }
        if request.system:
            body["system"] = request.system
        if request.stop:
            body["stop_sequences"] = list(request.stop)
        tools: list[dict[str, Any]] = [
            {"name": tool.name, "description": tool.description, "input_schema": tool.parameters}
            for tool in request.tools
        ]
        if request.schema is not None:
            tools.append({"name": _ANSWER, "description": "Give the answer with this.", "input_schema": request.schema})
            body["tool_choice"] = {"type": "any"} if request.tools else {"type": "tool", "name": _ANSWER}
        if tools:
            body["tools"] = tools
        return body


class _Block(msgspec.Struct):
    """One block of an answer: text, or a tool's call."""

    kind: str
    id: str = ""
    name: str = ""
    text: str = ""

    @classmethod
    def of(cls, part: _Part, *, is_start: bool = False) -> _Block:
        if part.type == "tool_use":
            text = "" if is_start else msgspec.json.encode(part.input).decode()
            return cls("tool_use", part.id, part.name, text)
        return cls(part.type, text=part.text or "")

    def add(self, delta: _Delta) -> str:
        """The next piece; returns what of it is text for the reader."""
        if delta.type == "text_delta":
            self.text += delta.text
            return delta.text
        if delta.type == "input_json_delta":
            self.text += delta.partial_json
        return ""


class _Heard:
    """What a stream has told so far."""

    def __init__(self) -> None:
        self.blocks: dict[int, _Block] = {}
        self.usage = Usage()
        self.reason: str | None = None
        self.model: str | None = None
        self.ended = False

    def add(self, event: _Event, doing: str) -> str:
        """The next event; returns what of it is text for the reader. Raises `BadAnswer` for one out of turn."""
        if event.type == "message_start" and event.message is not None:
            self.usage, self.model = _usage(event.message.usage), event.message.model
        elif event.type == "content_block_start" and event.content_block is not None:
            self.blocks[event.index] = _Block.of(event.content_block, is_start=True)
        elif event.type == "content_block_delta" and event.delta is not None:
            if event.index not in self.blocks:
                raise BadAnswer(f"{doing}: the stream goes on with block {event.index}, which it has not begun")
            return self.blocks[event.index].add(event.delta)
        elif event.type == "message_delta":
            self.reason = (event.delta.stop_reason if event.delta else None) or self.reason
            self.usage = _usage(event.usage, self.usage)
        elif event.type == "message_stop":
            self.ended = True
        return ""


def _messages(turns: Sequence[Turn]) -> list[dict[str, Any]]:
    """Results of tools are the user's turn here; those that follow each other are one turn."""
    messages: list[dict[str, Any]] = []
    for turn in turns:
        if turn.role == "tool":
            block = {"type": "tool_result", "tool_use_id": turn.tool_call_id, "content": turn.text}
            if messages and messages[-1]["role"] == "user" and isinstance(messages[-1]["content"], list):
                messages[-1]["content"].append(block)
            else:
                messages.append({"role": "user", "content": [block]})
        elif turn.tool_calls:
            blocks: list[dict[str, Any]] = [{"type": "text", "text": turn.text}] if turn.text else []
            blocks += [
                {"type": "tool_use", "id": call.id, "name": call.name, "input": call.decoded()}
                for call in turn.tool_calls
            ]
            messages.append({"role": turn.role, "content": blocks})
        else:
            messages.append({"role": turn.role, "content": turn.text})
    return messages


def _usage(found: _Usage | None, before: Usage = Usage()) -> Usage:  # noqa: B008  # it is frozen
    """Input counts what was read from and written to the provider's cache, too."""
    if found is None:
        return before
    parts = (found.input_tokens, found.cache_creation_input_tokens, found.cache_read_input_tokens)
    return Usage(
        input_tokens=sum(part or 0 for part in parts) or before.input_tokens,
        output_tokens=found.output_tokens or before.output_tokens,
    )


def _response(
    request: CompletionRequest, blocks: Sequence[_Block], reason: str | None, usage: Usage, model: str | None
) -> CompletionResponse:
    text = "".join(block.text for block in blocks if block.kind == "text")
    calls = [block for block in blocks if block.kind == "tool_use"]
    finished = _FINISHED.get(reason, "other")
    answers = [block for block in calls if block.name == _ANSWER] if request.schema is not None else []
    if answers:
        text, calls = answers[0].text, [block for block in calls if block.name != _ANSWER]
        if finished == "tool_calls" and not calls:
            finished = "stop"
    return CompletionResponse(
        text=text,
        tool_calls=tuple(ToolCall(id=block.id, name=block.name, arguments=block.text or "{}") for block in calls),
        finish_reason=finished,
        usage=usage,
        model=model or "",
    )
