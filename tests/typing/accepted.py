"""What a type checker must accept of a program that uses Hivewire."""

import hivewire as hw

coder = hw.Worker("coder", capabilities=["code_generation"], concurrency=8, groups=["all"], mode="ordered")


@coder.on("task", retry=hw.Retry(max_attempts=5, first_s=1, most_s=60))
async def write(task: hw.Message, ctx: hw.Context) -> dict[str, int]:
    await ctx.send("inform", "log", {"attempt": ctx.attempt})
    await ctx.progress(done=0.5)
    return {"lines": await ctx.once("lines", count)}


@coder.on("query", timeout_s=30)
def look(task: hw.Message, ctx: hw.Context) -> str:
    ctx.blocking.send("inform", "log", "looked")
    if task.content is None:
        raise hw.Reject("nothing to look at")
    raise hw.RetryAfter(2)


async def count() -> int:
    return 1


async def main() -> None:
    async with hw.connect("sqlite:///team.db", lease_s=5, max_attempts=3) as protocol:
        message = hw.Message(type="task", sender="me", to="coder/42", content={"n": 1}, priority=hw.Priority.HIGH)
        receipt: hw.Receipt = await protocol.send(message, delay_s=1, idempotency_key="once", timeout_s=3)
        print(receipt.id, receipt.duplicate)
        for delivery in await protocol.receive("coder", limit=10, wait_s=5.0):
            async with delivery:
                print(delivery.message.content, delivery.attempt)
        async for delivery in protocol.consume("coder"):
            await delivery.nack(delay_s=1)
        answer: hw.Message = await protocol.request(message.replace(key=hw.UNORDERED), timeout_s=3)
        letters: list[hw.DeadLetter] = await protocol.dead_letters("coder")
        replayed: int = await protocol.replay([letter.id for letter in letters])
        print(answer, replayed, protocol.metrics().acked, (await protocol.health()).durability)


if __name__ == "__main__":
    hw.run(coder, target="memory://", lease_s=2)
