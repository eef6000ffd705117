"""Models behind the chat completions API of OpenAI, which many providers and local servers speak too."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

from hivewire.errors import BadAnswer, ModelUnavailable, SettingsError
from hivewire.llm.contract import LLM, CompletionRequest, CompletionResponse, FinishReason, Piece, ToolCall, Turn, Usage
from hivewire.llm.sdk import Asking, each

_FINISHED: dict[str | None, FinishReason] = {
    "stop": "stop",
    "length": "length",
    "tool_calls": "tool_calls",
    "function_call": "tool_calls",
    "content_filter": "content_filter",
}


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
            raise SettingsError(f"models of openai: {error}") from error
        is_own = str(self._client.base_url).startswith("https://api.openai.com/")
        self._max_tokens = "max_completion_tokens" if is_own else "max_tokens"

    async def complete(self, request: CompletionRequest) -> CompletionResponse:
        limit_s = self._timeout_s if request.timeout_s is None else request.timeout_s
        doing = f"ask {request.model or self._model}"
        create = self._client.chat.completions.create
        answer = await self._asking.create(create, self._body(request), request.temperature, limit_s)
        if not getattr(answer, "choices", None):
            raise BadAnswer(f"{doing}: the answer has no choices: {str(answer)[:200]!r}")
        choice = answer.choices[0]
        calls = tuple(
            ToolCall(id=call.id, name=call.function.name, arguments=call.function.arguments)
            for call in choice.message.tool_calls or ()
            if call.type == "function"
        )
        return _response(
            choice.message.content or choice.message.refusal or "",
            calls,
            "content_filter" if choice.message.refusal else choice.finish_reason,
            answer.usage,
            answer.model,
        )

    async def stream(self, request: CompletionRequest) -> AsyncGenerator[Piece]:
        limit_s = self._timeout_s if request.timeout_s is None else request.timeout_s
        doing = f"ask {request.model or self._model}"
        texts: list[str] = []
        calls: dict[int, dict[str, str]] = {}
        reason: str | None = None
        usage: Any = None
        model = ""
        body = {**self._body(request), "stream": True, "stream_options": {"include_usage": True}}
        create = self._client.chat.completions.create
        chunks = await self._asking.create(create, body, request.temperature, limit_s)
        async with aclosing(each(self._sdk, chunks, doing, limit_s)) as pieces:
            async for chunk in pieces:
                usage, model = chunk.usage or usage, chunk.model or model
                for choice in chunk.choices:
                    reason = choice.finish_reason or reason
                    _add_calls(calls, choice.delta.tool_calls or ())
                    text = choice.delta.content or choice.delta.refusal
                    if choice.delta.refusal:
                        reason = "content_filter"
                    if text:
                        texts.append(text)
                        yield Piece(text=text)
        if reason is None:
            raise ModelUnavailable(f"{doing}: the stream ended in the middle, after {sum(map(len, texts))} characters")
        asked = tuple(ToolCall(**call) for _, call in sorted(calls.items()))
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


def _add_calls(calls: dict[int, dict[str, str]], deltas: Any) -> None:
    """A tool call comes in pieces: its name first, then its arguments bit by bit."""
    for delta in deltas:
        call = calls.setdefault(delta.index, {"id": "", "name": "", "arguments": ""})
        call["id"] = delta.id or call["id"]
        if delta.function is not None:
            call["name"] += delta.function.name or ""
            call["arguments"] += delta.function.arguments or ""


def _response(
    text: str, calls: tuple[ToolCall, ...], reason: str | None, usage: Any, model: str | None
) -> CompletionResponse:
    return CompletionResponse(
        text=text,
        tool_calls=calls,
        finish_reason=_FINISHED.get(reason, "other"),
        usage=Usage(
            input_tokens=getattr(usage, "prompt_tokens", None) or 0,
            output_tokens=getattr(usage, "completion_tokens", None) or 0,
        ),
        model=model or "",
    )
