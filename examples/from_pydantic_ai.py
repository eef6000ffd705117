"""An agent of pydantic-ai as a worker. Offline, with its test model:

python examples/from_pydantic_ai.py
"""

from __future__ import annotations

import asyncio

from pydantic_ai import Agent
from pydantic_ai.models.test import TestModel

import hivewire as hw

poet = Agent(TestModel(custom_output_text="A queue of words, in order kept"), instructions="You write one line.")

worker = hw.Worker("poet", capabilities=["poetry"])


@worker.on("task")
async def write(task: hw.Message, ctx: hw.Context) -> dict[str, str]:
    answer = await poet.run(task.content)
    return {"line": answer.output}


async def main() -> None:
    async with hw.connect("memory://") as protocol, asyncio.TaskGroup() as group:
        serving = group.create_task(worker.serve(protocol))
        task = hw.Message(type="task", sender="me", to="poet", content="A line on queues, please.")
        print((await protocol.request(task, timeout_s=20)).content["line"])
        serving.cancel()


asyncio.run(main())
