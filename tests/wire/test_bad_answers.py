"""Answers that only resemble the provider's: a field is missing, or of another type. No foreign error comes of it."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import pytest

from hivewire.errors import BadAnswer, ModelError
from hivewire.llm import LLM, Anthropic, CompletionRequest, CompletionResponse, OpenAI

COUNT = 40
JUNK: list[Any] = [None, [], {}, "x", 3, True, [None], [{}], -1, {"a": 1}]
ASK = CompletionRequest(user="what?", schema={"type": "object"})
CALL = {"index": 0, "id": "a", "type": "function", "function": {"name": "f", "arguments": "{}"}}
SAID = {"role": "assistant", "content": "hi", "tool_calls": [CALL]}
USED = {"prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 3}
HEAD = {"id": "x", "created": 1, "model": "m"}
OPENAI = [{**HEAD, "choices": [{"index": 0, "finish_reason": "stop", "message": SAID}], "usage": USED}]
OPENAI_STREAM = [
    {**HEAD, "choices": [{"index": 0, "finish_reason": None, "delta": SAID}], "usage": None},
    {**HEAD, "choices": [{"index": 0, "finish_reason": "stop", "delta": {}}], "usage": USED},
]
BLOCKS = [{"type": "text", "text": "hi"}, {"type": "tool_use", "id": "q", "name": "answer", "input": {"a": 1}}]
BEGUN = {"id": "x", "type": "message", "role": "assistant", "model": "m", "usage": {"input_tokens": 1}}
ANTHROPIC = [{**BEGUN, "content": BLOCKS, "stop_reason": "end_turn"}]
ANTHROPIC_STREAM = [
    {"type": "message_start", "message": {**BEGUN, "content": [], "stop_reason": None}},
    {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}},
    {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "hi"}},
    {"type": "content_block_stop", "index": 0},
    {"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": {"output_tokens": 2}},
    {"type": "message_stop"},
]


class Provider:
    """Answers every request with `parts`: one as a body, several as the events of a stream."""

    def __init__(self, is_stream: bool) -> None:
        self.is_stream = is_stream
        self.parts: Sequence[Any] = ()

    def _body(self) -> bytes:
        if not self.is_stream:
            return json.dumps(self.parts[0]).encode()
        kinds = (part.get("type") for part in self.parts)
        events = (f"event: {kind}\ndata: {json.dumps(p)}\n\n" for kind, p in zip(kinds, self.parts, strict=True))
        return "".join(events).encode()

    async def answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
        await reader.readexactly(int(head.split("content-length:")[1].split()[0]))
        body = self._body()
        kind = "text/event-stream" if self.is_stream else "application/json"
        lines = f"HTTP/1.1 200 OK\r\ncontent-type: {kind}\r\ncontent-length: {len(body)}\r\nconnection: close\r\n\r\n"
        writer.write(lines.encode() + body)
        await writer.drain()
        writer.close()
        await writer.wait_closed()


@asynccontextmanager
async def asked(kind: type[OpenAI] | type[Anthropic], is_stream: bool) -> AsyncIterator[tuple[Provider, LLM]]:
    provider = Provider(is_stream)
    async with await asyncio.start_server(provider.answer, "127.0.0.1", 0) as server:
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        async with kind("m", api_key="k", base_url=f"{url}/v1" if kind is OpenAI else url) as model:
            yield provider, model


async def response_of(provider: Provider, model: LLM, parts: Sequence[Any]) -> CompletionResponse:
    provider.parts = parts
    if not provider.is_stream:
        return await model.complete(ASK)
    *_, last = [piece async for piece in model.stream(ASK)]
    assert last.response is not None
    return last.response


def paths_of(value: Any, *, before: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    found = [] if before == () else [before]
    return found + [path for name, part in inner for path in paths_of(part, before=(*before, name))]


def spoiled(part: Any, rng: random.Random) -> Any:
    """The part with one field gone, or with something else in it."""
    part = json.loads(json.dumps(part))
    *way, last = rng.choice(paths_of(part))
    inner = part
    for name in way:
        inner = inner[name]
    if isinstance(inner, dict) and rng.random() < 0.3:
        del inner[last]
    else:
        inner[last] = rng.choice(JUNK)
    return part


CASES = {
    "openai": (OpenAI, OPENAI, False),
    "openai-stream": (OpenAI, OPENAI_STREAM, True),
    "anthropic": (Anthropic, ANTHROPIC, False),
    "anthropic-stream": (Anthropic, ANTHROPIC_STREAM, True),
}


@pytest.mark.parametrize(("kind", "parts", "is_stream"), CASES.values(), ids=CASES)
async def test_an_answer_of_another_form_is_ours_to_tell(
    kind: type[OpenAI] | type[Anthropic], parts: list[Any], is_stream: bool
) -> None:
    rng = random.Random(7)
    refused = 0
    async with asked(kind, is_stream) as (provider, model):
        assert (await response_of(provider, model, parts)).text in ("hi", '{"a":1}')
        for _ in range(COUNT):
            number = rng.randrange(len(parts))
            said = [spoiled(part, rng) if at == number else part for at, part in enumerate(parts)]
            try:
                answer = await response_of(provider, model, said)
            except ModelError as error:
                refused += isinstance(error, BadAnswer)
                continue
            words = [answer.text, answer.model, *(part for c in answer.tool_calls for part in (c.id, c.name))]
            assert all(isinstance(word, str) for word in words), said
            assert min(answer.usage.input_tokens, answer.usage.output_tokens) >= 0, said
    assert refused >= COUNT // 8
