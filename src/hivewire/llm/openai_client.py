"""Models behind the chat completions API of OpenAI, which many providers and local servers speak too."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Annotated, Any

import msgspec

from hivewire.errors import BadAnswer, ModelUnavailable, SettingsError
from hivewire.llm.contract import LLM, CompletionRequest, CompletionResponse, FinishReason, Piece, ToolCall, Turn, Usage
from hivewire.llm.sdk import Asking, each, read

_FINISHED: dict[str | None, FinishReason] = {
    "stop": "stop",
    "length": "length",
    "tool_calls": "tool_calls",
    "function_call": "tool_calls",
    "content_filter": "content_filter",
}


class _Function(msgspec.Struct):
    name: str | None = None
    arguments: str | None = None


class _Call(msgspec.Struct):
    """A tool's call. In a stream it comes in pieces: its name first, then its arguments bit by bit."""

    id: str | None = None
    type: str | None = None
    index: int | None = None
    function: _Function | None = None

    @property
    def asked(self) -> ToolCall:
        function = self.function or _Function()
        return ToolCall(id=self.id or "", name=function.name or "", arguments=function.arguments or "")


class _Said(msgspec.Struct):
    content: str | None = None
    refusal: str | None = None
    tool_calls: list[_Call] | None = None


class _Choice(msgspec.Struct):
    message: _Said | None = None
    delta: _Said | None = None
    finish_reason: str | None = None


_Tokens = Annotated[int, msgspec.Meta(ge=0)]


class _Usage(msgspec.Struct):
    prompt_tokens: _Tokens | None = None
    completion_tokens: _Tokens | None = None


class _Answer(msgspec.Struct):
    """A whole answer, or a piece of a stream."""

    choices: list[_Choice] | None = None
    usage: _Usage | None = None
    model: str | None = None


class OpenAI(LLM):
    """The official client `openai`, without its own retries (`Resilient` repeats).

    `api_key` None: the environment's `OPENAI_API_KEY`; `base_url` None: `OPENAI_BASE_URL`, else OpenAI's own. Another
    base URL is that of any server with the same API; it is given `max_tokens`, OpenAI itself `max_completion_tokens`.
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
            import openai
        except ImportError as error:
            raise SettingsError("models of openai: need the package openai; pip install 'hivewire[openai]'") from error
        self._sdk = openai
        self._asking = Asking(openai)
        self._model = model
        self._timeout_s = timeout_s
        try:
            self._client = openai.AsyncOpenAI(api_key=api_key, base_url=base_url, max_retries=0, timeout=timeout_s)
        except openai.OpenAIError as error:
            raise SettingsError(
                f"models of openai: {str(error).rstrip('.')}, or llm.api_key (HIVEWIRE_LLM_API_KEY)"
            ) from error
        is_own = str(self._client.base_url).startswith("https://api.openai.com/")
        self._max_tokens = "max_completion_tokens" if is_own else "max_tokens"

    async def complete(self, request: CompletionRequest) -> CompletionResponse:
        limit_s = self._timeout_s if request.timeout_s is None else request.timeout_s
        doing = f"ask {request.model or self._model}"
        create = self._client.chat.completions.create
        raw = await self._asking.create(create, self._body(request), request.temperature, limit_s)
        answer = read(raw, _Answer, doing)
        if not answer.choices or answer.choices[0].message is None:
            raise BadAnswer(f"{doing}: the answer has no choices: {str(raw)[:200]!r}")
        message = answer.choices[0].message
        calls = tuple(call.asked for call in message.tool_calls or () if call.type in ("function", None))
        return _response(
            message.content or message.refusal or "",
            calls,
            "content_filter" if message.refusal else answer.choices[0].finish_reason,
            answer.usage,
            answer.model,
        )

    async def stream(self, request: CompletionRequest) -> AsyncGenerator[Piece]:
        limit_s = self._timeout_s if request.timeout_s is None else request.timeout_s
        doing = f"ask {request.model or self._model}"
        texts: list[str] = []
        calls: dict[int, ToolCall] = {}
        reason: str | None = None
        usage: _Usage | None = None
        model = ""
        body = {**self._body(request), "stream": True, "stream_options": {"include_usage": True}}
        create = self._client.chat.completions.create
        chunks = await self._asking.create(create, body, request.temperature, limit_s)
        async with aclosing(each(self._sdk, chunks, doing, limit_s)) as pieces:
            async for raw in pieces:
                chunk = read(raw, _Answer, doing)
                usage, model = chunk.usage or usage, chunk.model or model
                for choice in chunk.choices or ():
                    delta = choice.delta or _Said()
                    reason = "content_filter" if delta.refusal else choice.finish_reason or reason
                    for call in delta.tool_calls or ():
                        index = call.index or 0  # some servers leave it out
                        calls[index] = _joined(calls.get(index), call.asked)
                    text = delta.content or delta.refusal
                    if text:
                        texts.append(text)
                        yield Piece(text=text)
        if reason is None:
            got = sum(map(len, texts))
            raise ModelUnavailable(f"{doing}: the stream ended in the middle, after {got} characters", may_cost=True)
        asked = tuple(call for _, call in sorted(calls.items()))
        yield Piece(response=_response("".join(texts), asked, reason, usage, model))

    async def close(self) -> None:
        await self._client.close()

    def _body(self, request: CompletionRequest) -> dict[str, Any]:
        messages: list[dict[str, Any]] = [{"role": "system", "content": request.system}] if request.system else []
        messages += [_turn(turn) for turn in request.conversation()]
        body: dict[str, Any] = {"model": request.model or self._model, "messages": messages}
        if request.max_tokens is not None:
            body[self._max_tokens] = request.max_tokens
        if request.stop:
            body["stop"] = list(request.stop)
        if request.tools:
            body["tools"] = [
                {
                    "type": "function",
                    "function": {"name": tool.name, "description": tool.description, "parameters": tool.parameters},
                }
                for tool in request.tools
            ]
        if request.schema is not None:
            body["response_format"] = {
                "type": "json_schema",
                "json_schema": {"name": "answer", "schema": request.schema},
            }
        return body


def _turn(turn: Turn) -> dict[str, Any]:
    if turn.role == "tool":
        return {"role": "tool", "content": turn.text, "tool_call_id": turn.tool_call_id}
    message: dict[str, Any] = {"role": turn.role, "content": turn.text}
    if turn.tool_calls:
        message["tool_calls"] = [
            {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
            for call in turn.tool_calls
        ]
    return message


def _joined(begun: ToolCall | None, more: ToolCall) -> ToolCall:
    if begun is None:
        return more
    return ToolCall(id=more.id or begun.id, name=begun.name + more.name, arguments=begun.arguments + more.arguments)


def _response(
    text: str, calls: tuple[ToolCall, ...], reason: str | None, usage: _Usage | None, model: str | None
) -> CompletionResponse:
    return CompletionResponse(
        text=text,
        tool_calls=calls,
        finish_reason=_FINISHED.get(reason, "other"),
        usage=Usage(
            input_tokens=usage.prompt_tokens or 0,
            output_tokens=usage.completion_tokens or 0,
        )
        if usage is not None
        else Usage(),
        model=model or "",
    )
