"""The models' clients against a server that nobody here wrote: what goes over the wire is what the providers take."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import aclosing

import pytest

from hivewire.errors import BadAnswer, ModelRefused, ModelUnavailable
from hivewire.llm import LLM, Anthropic, CompletionRequest, OpenAI, Piece, Resilient, Tool, Turn
from hivewire.rules.breaker import Breaker
from hivewire.rules.retry import Retry
from tests.wire.conftest import Mock

HELLO = "Good morning, said the mock, and then it said a good deal more."
WEATHER = Tool(
    name="get_weather",
    description="The weather of a city.",
    parameters={"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
)
SCHEMA = {"type": "object", "properties": {"rating": {"type": "integer"}, "why": {"type": "string"}}}
PATHS = {"openai": "/v1/chat/completions", "anthropic": "/v1/messages"}


@pytest.fixture(params=sorted(PATHS))
def provider(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
async def llm(provider: str, mock: Mock) -> AsyncIterator[LLM]:
    if provider == "openai":
        made: LLM = OpenAI("gpt-4.1", api_key="mock", base_url=f"{mock.url}/v1", timeout_s=10)
    else:
        made = Anthropic("claude-of-the-mock", api_key="mock", base_url=mock.url, timeout_s=10)
    async with made:
        yield made


async def pieces_of(llm: LLM, request: CompletionRequest) -> list[Piece]:
    return [piece async for piece in llm.stream(request)]


async def test_an_answer_comes_whole_with_its_usage(llm: LLM) -> None:
    answer = await llm.complete(CompletionRequest(system="Be brief.", user="hello", temperature=0.3, max_tokens=100))
    assert (answer.text, answer.finish_reason, answer.tool_calls) == (HELLO, "stop", ())


async def test_usage_is_what_the_server_counted(mock: Mock) -> None:
    async with OpenAI("gpt-4.1", api_key="mock", base_url=f"{mock.url}/v1") as llm:
        answer = await llm.complete(CompletionRequest(user="hello"))
        assert answer.usage.output_tokens > 0
        assert answer.tokens_used == answer.usage.input_tokens + answer.usage.output_tokens
        *_, last = await pieces_of(llm, CompletionRequest(user="hello"))
        assert last.response is not None
        assert last.response.usage == answer.usage


async def test_a_stream_gives_the_same_in_pieces(llm: LLM) -> None:
    *texts, last = await pieces_of(llm, CompletionRequest(user="hello"))
    assert len(texts) > 1
    assert "".join(piece.text for piece in texts) == HELLO
    assert last.response is not None
    assert (last.response.text, last.response.finish_reason) == (HELLO, "stop")


async def test_a_tool_is_asked_for_and_its_result_is_used(llm: LLM) -> None:
    request = CompletionRequest(user="What is the weather?", tools=(WEATHER,))
    asked = await llm.complete(request)
    (call,) = asked.tool_calls
    assert (call.name, call.decoded(), asked.finish_reason) == (
        "get_weather",
        {"city": "Bern", "days": [1, 2]},
        "tool_calls",
    )
    turns = (
        Turn(role="user", text=request.user),
        Turn(role="assistant", tool_calls=asked.tool_calls),
        Turn(role="tool", text="sunny", tool_call_id=call.id),
    )
    assert (await llm.complete(CompletionRequest(turns=turns, tools=(WEATHER,)))).text == "It is sunny in Bern."


async def test_a_tool_s_arguments_come_whole_out_of_a_stream(llm: LLM) -> None:
    *_, last = await pieces_of(llm, CompletionRequest(user="What is the weather?", tools=(WEATHER,)))
    assert last.response is not None
    (call,) = last.response.tool_calls
    assert (call.name, call.decoded()) == ("get_weather", {"city": "Bern", "days": [1, 2]})
    assert last.response.finish_reason == "tool_calls"


@pytest.mark.parametrize("streamed", [False, True])
async def test_an_answer_of_a_schema_is_read_as_data(llm: LLM, provider: str, streamed: bool) -> None:
    request = CompletionRequest(user=f"rate it by {'text' if provider == 'openai' else 'tool'}", schema=SCHEMA)
    if streamed:
        *_, last = await pieces_of(llm, request)
        assert last.response is not None
        answer = last.response
    else:
        answer = await llm.complete(request)
    assert answer.data() == {"rating": 4, "why": "braces { in } strings"}
    assert (answer.finish_reason, answer.tool_calls) == ("stop", ())


async def test_an_answer_that_was_cut_off_is_not_taken_for_data(llm: LLM) -> None:
    answer = await llm.complete(CompletionRequest(user="too long"))
    assert answer.finish_reason == "length"
    with pytest.raises(BadAnswer, match="max_tokens"):
        answer.data()


async def test_a_request_that_is_at_fault_is_refused(llm: LLM) -> None:
    with pytest.raises(ModelRefused, match="API key"):
        await llm.complete(CompletionRequest(user="wrong key"))
    with pytest.raises(ModelRefused, match="API key"):
        await pieces_of(llm, CompletionRequest(user="wrong key"))


async def test_a_rate_limit_says_how_long_to_wait(llm: LLM, mock: Mock) -> None:
    mock.chaos(rateLimitRate=1)
    with pytest.raises(ModelUnavailable, match="429") as caught:
        await llm.complete(CompletionRequest(user="hello"))
    assert caught.value.is_rate_limit
    assert caught.value.retry_after_s == 1.0


async def test_an_overloaded_provider_is_not_available(llm: LLM) -> None:
    with pytest.raises(ModelUnavailable, match="Overloaded") as caught:
        await llm.complete(CompletionRequest(user="overloaded"))
    assert not caught.value.is_rate_limit


@pytest.mark.parametrize("fault", ["dropRate", "malformedRate", "disconnectRate"])
@pytest.mark.parametrize("streamed", [False, True])
async def test_every_fault_is_one_of_ours(llm: LLM, mock: Mock, fault: str, streamed: bool) -> None:
    mock.chaos(**{fault: 1})
    ask = pieces_of(llm, CompletionRequest(user="hello")) if streamed else llm.complete(CompletionRequest(user="hello"))
    expected = ModelUnavailable if fault != "malformedRate" or streamed else BadAnswer
    with pytest.raises(expected):
        await ask
    mock.chaos()
    assert (await llm.complete(CompletionRequest(user="hello"))).text == HELLO


async def test_a_stream_that_breaks_off_never_looks_whole(llm: LLM) -> None:
    seen: list[Piece] = []

    async def read() -> None:
        async for piece in llm.stream(CompletionRequest(user="cut me off")):
            seen.append(piece)

    with pytest.raises(ModelUnavailable):
        await read()
    assert all(piece.response is None for piece in seen)
    text = "".join(piece.text for piece in seen)
    assert 0 < len(text) < len("This answer is so long that it needs many chunks of twenty characters to come over.")


async def test_time_runs_out_in_complete_and_between_pieces(llm: LLM) -> None:
    with pytest.raises(ModelUnavailable, match=r"no answer within 0\.05 s"):
        await pieces_of(llm, CompletionRequest(user="slowly", timeout_s=0.05))


async def test_a_stream_can_be_left_and_a_request_cancelled(llm: LLM) -> None:
    async with aclosing(llm.stream(CompletionRequest(user="slowly"))) as pieces:
        async for piece in pieces:
            assert piece.text
            break
    waiting = asyncio.create_task(pieces_of(llm, CompletionRequest(user="slowly")))
    await asyncio.sleep(0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert (await llm.complete(CompletionRequest(user="hello"))).text == HELLO


async def test_it_is_asked_again_until_it_answers(llm: LLM, mock: Mock) -> None:
    mock.chaos(dropRate=0.4, disconnectRate=0.3)
    patient = Resilient(
        llm,
        retry=Retry(max_attempts=60, first_s=0.001, most_s=0.002),
        breaker=Breaker(failures=1_000),
        rng=random.Random(1),
    )
    for _ in range(10):
        assert (await patient.complete(CompletionRequest(user="hello"))).text == HELLO
        *_, last = await pieces_of(patient, CompletionRequest(user="hello"))
        assert last.response is not None
        assert last.response.text == HELLO


async def test_a_model_that_takes_no_temperature_is_asked_without(llm: LLM, mock: Mock, provider: str) -> None:
    before = mock.requests(PATHS[provider])
    for _ in range(2):
        answer = await llm.complete(
            CompletionRequest(user="hello", temperature=0.3, model=f"no-temperature-{provider}")
        )
        assert answer.text == HELLO
    assert mock.requests(PATHS[provider]) == before + 3  # once refused, and remembered


async def test_a_server_that_is_not_there_is_not_available() -> None:
    async with OpenAI("gpt-4.1", api_key="mock", base_url="http://127.0.0.1:9/v1") as llm:
        with pytest.raises(ModelUnavailable, match=r"ask gpt-4\.1: the connection to 127\.0\.0\.1:\d+ failed"):
            await llm.complete(CompletionRequest(user="hello"))
