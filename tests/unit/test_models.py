"""Models without a wire: retries, recorded answers, the scripted model, names, and the translation of turns."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from email.utils import formatdate
from pathlib import Path

import pytest

from hivewire.errors import BadAnswer, ModelError, ModelRefused, ModelUnavailable, SettingsError
from hivewire.llm import (
    CompletionRequest,
    CompletionResponse,
    Piece,
    Recorded,
    Resilient,
    ToolCall,
    Turn,
    Usage,
    connect_model,
)
from hivewire.llm.anthropic_client import _messages, _Usage, _usage
from hivewire.llm.failures import failure, retry_after_s
from hivewire.rules.breaker import Breaker
from hivewire.rules.retry import Retry
from hivewire.testing.scripted_model import ScriptedModel
from hivewire.testing.virtual_time import run_virtual

ASK = CompletionRequest(user="what?")
AT_ONCE = Retry(max_attempts=3, first_s=0.0, most_s=5.0)


async def pieces_of(llm: Recorded | Resilient | ScriptedModel, request: CompletionRequest = ASK) -> list[Piece]:
    return [piece async for piece in llm.stream(request)]


async def test_a_model_that_is_away_is_asked_again() -> None:
    model = ScriptedModel([ModelUnavailable("away"), BadAnswer("odd"), "here"])
    assert (await Resilient(model, retry=AT_ONCE).complete(ASK)).text == "here"
    model = ScriptedModel([ModelUnavailable("away"), "a\nb"])
    assert [piece.text for piece in await pieces_of(Resilient(model, retry=AT_ONCE))] == ["a\n", "b", ""]


async def test_attempts_are_counted() -> None:
    model = ScriptedModel([ModelUnavailable("one"), ModelUnavailable("two"), ModelUnavailable("three"), "never asked"])
    with pytest.raises(ModelUnavailable, match="three"):
        await Resilient(model, retry=AT_ONCE).complete(ASK)
    assert model.left == 1


async def test_what_is_refused_is_not_asked_again() -> None:
    model = ScriptedModel([ModelRefused("bad key"), "never asked"])
    with pytest.raises(ModelRefused):
        await Resilient(model, retry=AT_ONCE).complete(ASK)
    assert model.left == 1


def test_the_provider_s_wait_is_kept() -> None:
    async def main() -> float:
        model = ScriptedModel([ModelUnavailable("busy", retry_after_s=4.0, is_rate_limit=True), "here"])
        loop = asyncio.get_running_loop()
        began = loop.time()
        await Resilient(model, retry=AT_ONCE).complete(ASK)
        return loop.time() - began

    assert run_virtual(main()) == pytest.approx(4.0)


async def test_a_wait_that_is_too_long_goes_to_the_caller() -> None:
    model = ScriptedModel([ModelUnavailable("busy", retry_after_s=3600.0, is_rate_limit=True), "never asked"])
    with pytest.raises(ModelUnavailable) as caught:
        await Resilient(model, retry=AT_ONCE).complete(ASK)
    assert (caught.value.retry_after_s, model.left) == (3600.0, 1)


def test_the_request_s_time_bounds_all_attempts() -> None:
    async def main() -> tuple[float, int]:
        model = Slow([ModelUnavailable("no answer") for _ in range(9)])
        loop = asyncio.get_running_loop()
        began = loop.time()
        with pytest.raises(ModelUnavailable):
            await Resilient(model, retry=Retry(max_attempts=9, first_s=0.0, most_s=5.0)).complete(
                CompletionRequest(user="what?", timeout_s=10.0)
            )
        return loop.time() - began, model.left

    took_s, left = run_virtual(main())
    assert took_s == pytest.approx(10.0)
    assert left == 6  # asked at 0, 4 and 8 s


class Slow(ScriptedModel):
    """Takes four seconds, or what the request leaves it."""

    async def complete(self, request: CompletionRequest) -> CompletionResponse:
        await asyncio.sleep(min(4.0, 4.0 if request.timeout_s is None else request.timeout_s))
        return await super().complete(request)


class BreaksOff(ScriptedModel):
    async def stream(self, request: CompletionRequest):  # type: ignore[no-untyped-def]  # as its base
        self.requests.append(request)
        yield Piece(text="half of ")
        raise ModelUnavailable("broke off")


async def test_a_stream_is_not_begun_again_once_some_of_it_was_read() -> None:
    model = BreaksOff([])
    with pytest.raises(ModelUnavailable, match="broke off"):
        await pieces_of(Resilient(model, retry=AT_ONCE))
    assert len(model.requests) == 1


async def test_a_model_that_keeps_failing_is_left_alone_and_tried_again() -> None:
    now = 0.0
    model = ScriptedModel([ModelUnavailable("x")] * 3 + ["here"])
    careful = Resilient(model, retry=Retry(max_attempts=1), breaker=Breaker(failures=3, rest_s=60), clock=lambda: now)
    for _ in range(3):
        with pytest.raises(ModelUnavailable, match="x"):
            await careful.complete(ASK)
    with pytest.raises(ModelUnavailable, match=r"left alone for 60\.0 s") as caught:
        await careful.complete(ASK)
    assert (caught.value.retry_after_s, len(model.requests)) == (60.0, 3)
    now = 60.0
    assert (await careful.complete(ASK)).text == "here"


async def test_rate_limits_do_not_open_the_breaker() -> None:
    busy = [ModelUnavailable("busy", is_rate_limit=True) for _ in range(5)]
    model = ScriptedModel([*busy, "here"])
    careful = Resilient(model, retry=Retry(max_attempts=9, first_s=0.0), breaker=Breaker(failures=2))
    assert (await careful.complete(ASK)).text == "here"


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"retry-after": "7"}, 7.0),
        ({"retry-after-ms": "250", "retry-after": "7"}, 0.25),
        ({"retry-after": formatdate(1_000_030, usegmt=True)}, 30.0),
        ({"retry-after": formatdate(999_000, usegmt=True)}, 0.0),
        ({"retry-after": "soon"}, None),
        ({"retry-after": "inf"}, None),
        ({"retry-after": "nan"}, None),
        ({}, None),
    ],
)
def test_retry_after(headers: dict[str, str], seconds: float | None) -> None:
    assert retry_after_s(headers, now=1_000_000) == seconds


@pytest.mark.parametrize(
    ("status", "kind"),
    [(400, ModelRefused), (401, ModelRefused), (404, ModelRefused), (408, ModelUnavailable), (429, ModelUnavailable),
     (500, ModelUnavailable), (503, ModelUnavailable), (529, ModelUnavailable)],
)  # fmt: skip
def test_what_a_status_means(status: int, kind: type[ModelError]) -> None:
    assert type(failure("ask m", status, "why", {})) is kind


async def test_an_answer_that_a_killed_process_has_half_written_spoils_no_other(tmp_path: Path) -> None:
    path = tmp_path / "answers.jsonl"
    await Recorded(path, ScriptedModel(["one"]), mode="record").complete(ASK)
    whole = path.read_bytes()
    path.write_bytes(whole + whole[:50])
    assert (await Recorded(path).complete(ASK)).text == "one"
    other = CompletionRequest(user="more")
    await Recorded(path, ScriptedModel(["two"]), mode="auto").complete(other)
    assert (await Recorded(path).complete(ASK)).text == "one"
    assert (await Recorded(path).complete(other)).text == "two"
    assert path.read_bytes().startswith(whole + b"{")
    path.write_bytes(path.read_bytes().rstrip(b"\n"))  # as editors leave it
    assert (await Recorded(path).complete(other)).text == "two"
    await Recorded(path, ScriptedModel(["three"]), mode="record").complete(other)
    assert path.read_bytes().count(b"\n") == 3


async def test_answers_are_recorded_and_given_again(tmp_path: Path) -> None:
    path = tmp_path / "kept" / "answers.jsonl"
    recorder = Recorded(path, ScriptedModel(["one", "two", "other"]), mode="record")
    other = CompletionRequest(user="other?", schema={"type": "object"})
    assert [(await recorder.complete(ASK)).text for _ in range(2)] == ["one", "two"]
    assert (await pieces_of(recorder, other))[-1].response is not None
    replay = Recorded(path)
    given = [(await replay.complete(ASK)).text for _ in range(3)]
    assert given == ["one", "two", "two"]
    assert "".join(piece.text for piece in await pieces_of(replay, other)) == "other"
    with pytest.raises(ModelRefused, match="record it first"):
        await replay.complete(CompletionRequest(user="new"))


async def test_a_request_with_another_time_limit_is_the_same(tmp_path: Path) -> None:
    path = tmp_path / "answers.jsonl"
    await Recorded(path, ScriptedModel(["one"]), mode="record").complete(ASK)
    assert (await Recorded(path).complete(CompletionRequest(user="what?", timeout_s=3))).text == "one"


async def test_auto_asks_only_for_what_is_not_there(tmp_path: Path) -> None:
    path = tmp_path / "answers.jsonl"
    model = ScriptedModel(["one", "two"])
    first = Recorded(path, model, mode="auto")
    await first.complete(ASK)
    again = Recorded(path, model, mode="auto")
    assert [(await again.complete(ASK)).text, (await again.complete(ASK)).text] == ["one", "two"]
    assert model.left == 0


async def test_a_file_of_something_else_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "answers.jsonl"
    path.write_text("not json\n")
    with pytest.raises(SettingsError, match="line 1 is no recorded answer"):
        await Recorded(path).complete(ASK)
    with pytest.raises(SettingsError, match="needs a model"):
        Recorded(path, mode="record")
    with pytest.raises(SettingsError, match="mode is 'replay', 'record' or 'auto', not 'again'"):
        Recorded(path, ScriptedModel([]), mode="again")  # type: ignore[arg-type]  # on purpose


async def test_a_recording_that_is_not_there_or_not_to_be_had_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelRefused, match="is not there, to answer: 'what"):
        await Recorded(tmp_path / "answers.jsonl").complete(ASK)
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(SettingsError, match="the answer cannot be kept"):
        await Recorded(tmp_path / "file" / "answers.jsonl", ScriptedModel(["one"]), mode="record").complete(ASK)


async def test_the_scripted_model_counts_what_it_is_asked() -> None:
    model = ScriptedModel(["one", {"n": 1}])
    assert (await model.complete(ASK)).tokens_used == 2
    assert (await model.complete(ASK)).data() == {"n": 1}
    with pytest.raises(ModelRefused, match="no answer left"):
        await model.complete(ASK)
    assert len(model.requests) == 3
    echo = ScriptedModel(lambda request: request.user.upper())
    assert (await echo.complete(ASK)).text == "WHAT?"


@pytest.mark.parametrize("name", ["gpt-4", "openai:", "nobody:model", ":x"])
def test_a_wrong_name_says_what_is_accepted(name: str) -> None:
    with pytest.raises(SettingsError, match=r"openai:NAME, anthropic:NAME or recorded:PATH"):
        connect_model(name)


@pytest.mark.parametrize(("name", "variable"), [("openai:m", "OPENAI_API_KEY"), ("anthropic:m", "ANTHROPIC_API_KEY")])
def test_a_missing_key_says_where_it_is_read(name: str, variable: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for other in ("OPENAI_API_KEY", "ANTHROPIC_API_KEY", "ANTHROPIC_AUTH_TOKEN"):
        monkeypatch.delenv(other, raising=False)
    with pytest.raises(SettingsError, match=variable):
        connect_model(name)


def test_arguments_and_answers_are_data_from_outside() -> None:
    with pytest.raises(BadAnswer, match="not a JSON object"):
        ToolCall(id="1", name="t", arguments="[1]").decoded()
    with pytest.raises(BadAnswer, match="not JSON"):
        ToolCall(id="1", name="t", arguments="{").decoded()
    with pytest.raises(BadAnswer, match="not JSON"):
        CompletionResponse(text="[" * 100_000).data()


def test_results_of_tools_are_one_turn_for_anthropic() -> None:
    calls = (ToolCall(id="a", name="t"), ToolCall(id="b", name="t", arguments='{"n": 1}'))
    turns = [
        Turn(role="user", text="go"),
        Turn(role="assistant", text="well", tool_calls=calls),
        Turn(role="tool", text="1", tool_call_id="a"),
        Turn(role="tool", text="2", tool_call_id="b"),
    ]
    assert [message["role"] for message in _messages(turns)] == ["user", "assistant", "user"]
    assert [block["tool_use_id"] for block in _messages(turns)[-1]["content"]] == ["a", "b"]


def test_what_the_end_of_a_stream_does_not_say_is_what_its_start_said() -> None:
    started = _usage(_Usage(input_tokens=10, cache_read_input_tokens=5, output_tokens=1))
    assert _usage(_Usage(output_tokens=7), started) == Usage(input_tokens=15, output_tokens=7)
    assert _usage(_Usage(input_tokens=20), started) == Usage(input_tokens=20, output_tokens=1)
    assert _usage(None, started) == started


def test_the_clients_are_loaded_only_when_a_model_is_made() -> None:
    code = "import sys, hivewire.llm; print({'openai', 'anthropic', 'httpx', 'httpx2', 'pydantic'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "set()\n"
