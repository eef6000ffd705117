"""Budgets that workers share, on memory and on SQLite."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

import hivewire as hw
from hivewire.coordination.budgeted import Budgeted, Spending
from hivewire.coordination.budgets import Budgets, read_prices
from hivewire.errors import BadAnswer, BudgetExceeded, ModelUnavailable
from hivewire.llm import CompletionRequest, CompletionResponse, Resilient, Usage
from hivewire.rules.budget import Cost, Limit, Price
from hivewire.testing.scripted_model import Answer, ScriptedModel

ASK = CompletionRequest(user="what?", max_tokens=100)
AT = 1_795_600_000.0  # 2026-11-25


@pytest.fixture(params=["memory", "sqlite"])
async def protocols(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[list[hw.Protocol]]:
    """Two objects on one store."""
    target = f"memory://{tmp_path.name}" if request.param == "memory" else f"sqlite:///{tmp_path}/budgets.db"
    async with hw.connect(target) as one, hw.connect(target) as other:
        yield [one, other]


def answer_of(tokens: int) -> CompletionResponse:
    return CompletionResponse(text="x", usage=Usage(input_tokens=tokens - 1, output_tokens=1), model="m")


async def test_thirty_two_workers_never_pass_the_limit(protocols: list[hw.Protocol]) -> None:
    """Each call holds at most 152 tokens and uses 60; the limit is 3,000."""
    largest, granted, refused = 0, 0, 0
    limit = Limit(tokens=3_000)

    class Slow(ScriptedModel):
        async def complete(self, request: CompletionRequest) -> CompletionResponse:
            await asyncio.sleep(0)
            return answer_of(60)

    async def work(number: int) -> None:
        nonlocal granted, refused, largest
        budgets = Budgets(protocols[number % 2], {"run": limit}, clock=lambda: AT)
        model = Budgeted(Slow([]), budgets, ["run/r1"])
        for _ in range(4):
            try:
                await model.complete(ASK)
                granted += 1
            except BudgetExceeded as error:
                refused += (error.scope, error.what) == ("run/r1", "tokens")
            (line,) = await budgets.summary("run/")
            largest = max(largest, line.tokens + line.reserved_tokens)

    await asyncio.gather(*(work(number) for number in range(32)))
    budgets = Budgets(protocols[0], {"run": limit}, clock=lambda: AT)
    (line,) = await budgets.summary("run/")
    assert largest <= 3_000
    assert (line.tokens, line.calls, line.reserved_tokens) == (granted * 60, granted, 0)
    assert granted + refused == 128
    assert refused > 0
    days = await budgets.summary("day/")
    assert [(day.scope, day.tokens) for day in days] == [("day/2026-11-25", granted * 60)]


async def test_it_survives_a_restart_and_keeps_days_apart(tmp_path: Path) -> None:
    now = AT
    for _ in range(2):
        async with hw.connect(f"sqlite:///{tmp_path}/b.db") as protocol:
            budgets = Budgets(protocol, {"day": Limit(calls=2)}, clock=lambda: now)
            await Budgeted(ScriptedModel(["x"]), budgets, []).complete(ASK)
    async with hw.connect(f"sqlite:///{tmp_path}/b.db") as protocol:
        budgets = Budgets(protocol, {"day": Limit(calls=2)}, clock=lambda: now)
        with pytest.raises(BudgetExceeded, match=r"budget of day/2026-11-25: calls 2 of 2 are used"):
            await Budgeted(ScriptedModel(["x"]), budgets, []).complete(ASK)
        now += 86_400
        await Budgeted(ScriptedModel(["x"]), budgets, []).complete(ASK)
        assert [line.scope for line in await budgets.summary("day/")] == ["day/2026-11-25", "day/2026-11-26"]
        (month,) = await budgets.summary("month/")
        assert (month.scope, month.calls) == ("month/2026-11", 3)


async def test_a_refusal_leaves_nothing_held(protocols: list[hw.Protocol]) -> None:
    budgets = Budgets(protocols[0], {"run": Limit(tokens=10)}, clock=lambda: AT)
    with pytest.raises(BudgetExceeded):
        await budgets.reserve(["label/a", "run/r"], Cost(11, 0, 1))
    assert all(line.tokens == line.reserved_tokens == 0 for line in await budgets.summary())


async def test_money_by_the_price_file(protocols: list[hw.Protocol], tmp_path: Path) -> None:
    (tmp_path / "prices.json").write_text('{"big": {"input": 3, "output": 15}, "small": {"input": 0.3, "output": 1.5}}')
    prices = read_prices(tmp_path / "prices.json")
    budgets = Budgets(protocols[0], {"run": Limit(money=0.002)}, clock=lambda: AT)
    model = ScriptedModel(lambda request: CompletionResponse(text="x", usage=Usage(input_tokens=10, output_tokens=20)))
    paid = Budgeted(model, budgets, ["run/r"], model="big", prices=prices, cheaper="small")
    for _ in range(8):
        await paid.complete(ASK)
    (line,) = await budgets.summary("run/")
    asked = [request.model for request in model.requests]
    dear, cheap = asked.count(None), asked.count("small")
    assert (dear, cheap) == (2, 6)  # of the dear one each holds 0.0016 and costs 0.00033
    assert line.money == pytest.approx(2 * 0.00033 + 6 * 0.000033)
    for wrong in ('{"big": {"in": 3}}', '{"big": {"input": -3, "output": 15}}'):  # by a negative one nothing is spent
        (tmp_path / "prices.json").write_text(wrong)
        with pytest.raises(hw.SettingsError, match=r"price file .*prices\.json"):
            read_prices(tmp_path / "prices.json")
    assert Price(0, 0).cost(1, 1).money == 0


async def test_a_server_that_does_not_count_costs_what_was_reserved() -> None:
    """Else a local server would spend without end."""
    async with hw.connect("memory://") as protocol:
        budgets = Budgets(protocol, {"run": Limit(tokens=1_000)}, clock=lambda: AT)
        paid = Budgeted(ScriptedModel(lambda request: CompletionResponse(text="x")), budgets, ["run/r"])
        for _ in range(7):
            await paid.complete(ASK)
        with pytest.raises(BudgetExceeded):
            await paid.complete(ASK)
        (line,) = await budgets.summary("run/")
    assert (line.calls, line.tokens, line.reserved_tokens) == (7, 7 * 136, 0)


async def test_what_was_not_answered_costs_nothing_and_what_was_cancelled_costs_all(
    protocols: list[hw.Protocol],
) -> None:
    budgets = Budgets(protocols[0], {}, clock=lambda: AT)
    with pytest.raises(ModelUnavailable):
        await Budgeted(ScriptedModel([ModelUnavailable("x")]), budgets, ["run/away"]).complete(ASK)

    class Hanging(ScriptedModel):
        async def complete(self, request: CompletionRequest) -> CompletionResponse:
            started.set()
            await asyncio.Event().wait()
            raise AssertionError

    started = asyncio.Event()
    asking = asyncio.create_task(Budgeted(Hanging([]), budgets, ["run/cancelled"]).complete(ASK))
    await started.wait()
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking
    lines = {line.scope: (line.tokens, line.reserved_tokens) for line in await budgets.summary("run/")}
    assert lines["run/away"] == (0, 0)
    assert lines["run/cancelled"][0] > 100
    assert lines["run/cancelled"][1] == 0


async def test_each_attempt_is_paid() -> None:
    """The provider has worked on an answer that is of no use, and on one that did not come in time."""
    script: list[Answer] = [
        BadAnswer("x"),
        ModelUnavailable("busy"),
        ModelUnavailable("late", may_cost=True),
        "well",
        "never",
    ]
    model = ScriptedModel(script)
    async with hw.connect("memory://") as protocol:
        budgets = Budgets(protocol, {"run": Limit(calls=3)}, clock=lambda: AT)
        paid = Budgeted(Resilient(model, retry=hw.Retry(max_attempts=4, first_s=0.0)), budgets, ["run/r"])
        assert (await paid.complete(ASK)).text == "well"
        with pytest.raises(BudgetExceeded):
            await paid.complete(ASK)
        assert model.left == 1
        (line,) = await budgets.summary("run/")
    most = 100 + 2 * 16 + 4
    assert (line.calls, line.tokens, line.reserved_tokens) == (3, 2 * most + 2, 0)


async def test_attempts_of_a_stream_are_paid_each() -> None:
    async with hw.connect("memory://") as protocol:
        budgets = Budgets(protocol, {"run": Limit(calls=1)}, clock=lambda: AT)
        retry = hw.Retry(max_attempts=4, first_s=0.0)
        for late, ends in ((True, BudgetExceeded), (False, None)):
            model = ScriptedModel([ModelUnavailable("late", may_cost=late), "well"])
            paid = Budgeted(Resilient(model, retry=retry), budgets, [f"run/{late}"])
            if ends is None:
                assert [piece.text async for piece in paid.stream(ASK)] == ["well", ""]
            else:
                with pytest.raises(ends):
                    await anext(paid.stream(ASK))
        assert {line.scope: line.calls for line in await budgets.summary("run/")} == {"run/True": 1, "run/False": 1}


async def test_a_stream_is_settled_when_it_ends_or_is_left(protocols: list[hw.Protocol]) -> None:
    budgets = Budgets(protocols[0], {}, clock=lambda: AT)
    whole = Budgeted(ScriptedModel(["a\nb"]), budgets, ["run/whole"])
    assert [piece.text async for piece in whole.stream(ASK)] == ["a\n", "b", ""]
    left = Budgeted(ScriptedModel(["a\nb"]), budgets, ["run/left"]).stream(ASK)
    await anext(left)
    await left.aclose()
    lines = {line.scope: (line.tokens, line.reserved_tokens) for line in await budgets.summary("run/")}
    assert lines["run/whole"] == (3, 0)
    assert lines["run/left"][0] > 100
    assert lines["run/left"][1] == 0


async def test_a_run_s_limit_is_split_over_its_subtasks(protocols: list[hw.Protocol]) -> None:
    whole = Spending(limits={"run": Limit(tokens=400)}, is_split=True)
    share = whole.of_subtask("r", "write", 4)
    assert share.limits["run/r/write"].tokens == 100
    assert Spending(limits=whole.limits).of_subtask("r", "write", 4).limits == whole.limits
    budgets = Budgets(protocols[0], share.limits, clock=lambda: AT)
    with pytest.raises(BudgetExceeded, match=r"budget of run/r/write: tokens 0 of 100"):
        await budgets.reserve(["run/r", "run/r/write"], Cost(101, 0, 1))
    await budgets.reserve(["run/r", "run/r/other"], Cost(101, 0, 1))
