"""What a consumer on Redis waits for."""

from __future__ import annotations

import asyncio

from hivewire.backends.redis.waiting import News, Stillness


async def test_news_wakes_who_waits_and_is_not_forgotten_when_nobody_does() -> None:
    news = News()
    waiting = [asyncio.create_task(news.wait(60)) for _ in range(2)]
    await asyncio.sleep(0)
    news.tell()
    assert await asyncio.gather(*waiting) == [True, True]
    assert await news.wait(60)
    news.is_there = False
    assert not await news.wait(0.001)


async def test_who_stops_waiting_takes_the_news_from_nobody() -> None:
    news = News()
    leaves, stays = (asyncio.create_task(news.wait(60)) for _ in range(2))
    await asyncio.sleep(0)
    leaves.cancel()
    await asyncio.gather(leaves, return_exceptions=True)
    news.tell()
    assert await stays


async def test_stillness_waits_for_the_reader_and_the_reader_for_all_who_look() -> None:
    stillness, said = Stillness(), list[str]()

    async def look(name: str, until: asyncio.Event) -> None:
        async with stillness.kept():
            said.append(f"{name} looks")
            await until.wait()
        said.append(f"{name} has looked")

    stillness.reading = True
    ends = asyncio.Event(), asyncio.Event()
    looking = [asyncio.create_task(look(name, end)) for name, end in zip("ab", ends, strict=True)]
    await asyncio.sleep(0)
    assert said == []
    assert stillness.is_asked
    stillness.read()

    async def read() -> None:
        await stillness.free()
        said.append("read")

    reading = asyncio.create_task(read())
    for end in ends:
        end.set()
        await asyncio.sleep(0)
        await asyncio.sleep(0)
    await asyncio.gather(*looking, reading)
    assert said.index("read") == 4, said
    assert not stillness.is_asked
