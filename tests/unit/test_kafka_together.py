"""Many who ask at once, and one question for them."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from hivewire.backends.kafka.together import Together, all_of


class Asked:
    """Answers when it is told to."""

    def __init__(self) -> None:
        self.questions: list[list[int]] = []
        self.may_answer = asyncio.Event()
        self.fails = 0

    async def put(self, asked: Sequence[int]) -> list[int]:
        self.questions.append(list(asked))
        await self.may_answer.wait()
        if self.fails:
            self.fails -= 1
            raise ValueError("no answer")
        return [-one for one in asked]


async def begun(together: Together[int, list[int]], *asked: int) -> list[asyncio.Task[list[int]]]:
    tasks = [asyncio.create_task(together.ask(one)) for one in asked]
    await asyncio.sleep(0)
    return tasks


async def test_who_asks_while_a_question_is_open_shares_the_next_one() -> None:
    to = Asked()
    together = Together(to.put)
    tasks = await begun(together, 1) + await begun(together, 2, 3, 4)
    to.may_answer.set()
    assert await asyncio.gather(*tasks) == [[-1], *[[-2, -3, -4]] * 3]
    assert to.questions == [[1], [2, 3, 4]]


async def test_a_question_whose_asker_was_cancelled_is_put_by_the_next() -> None:
    to = Asked()
    together = Together(to.put)
    before, first, second = await begun(together, 1) + await begun(together, 2, 3)
    before.cancel()
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    first.cancel()
    to.may_answer.set()
    assert await second == [-2, -3]
    assert before.cancelled() or await asyncio.wait([before])
    assert first.cancelled() or await asyncio.wait([first])


async def test_an_error_is_for_who_put_the_question() -> None:
    to = Asked()
    to.fails = 1
    together = Together(to.put)
    (before,) = await begun(together, 1)
    tasks = await begun(together, 2, 3)
    to.may_answer.set()
    with pytest.raises(ValueError, match="no answer"):
        await before
    assert await asyncio.gather(*tasks) == [[-2, -3]] * 2


async def test_all_end_at_once_and_the_first_problem_is_told_when_all_have_ended() -> None:
    barrier, ended = asyncio.Barrier(3), []

    async def end(number: int) -> None:
        await barrier.wait()  # whoever goes on before all have begun would wait for ever
        await asyncio.sleep(0.01 * number)
        ended.append(number)
        if number < 2:
            raise ValueError(f"problem {number}")

    async with asyncio.timeout(10):
        with pytest.raises(ValueError, match="problem 0"):
            await all_of([end(number) for number in range(3)])
    assert ended == [0, 1, 2]
