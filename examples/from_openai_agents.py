"""An agent of the OpenAI Agents SDK as a worker. Offline, with a model that says one line:

python examples/from_openai_agents.py
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

from agents import Agent, Model, ModelResponse, Runner, Usage, set_tracing_disabled
from openai.types.responses import ResponseOutputMessage, ResponseOutputText

import hivewire as hw

set_tracing_disabled(True)


class OneLine(Model):
    """Stands for a real model: leave out `model=` below, and the SDK asks OpenAI."""

    async def get_response(self, *args: Any, **kwargs: Any) -> ModelResponse:
        text = ResponseOutputText(text="A queue of words, in order kept", type="output_text", annotations=[])
        message = ResponseOutputMessage(id="1", role="assistant", status="completed", type="message", content=[text])
        return ModelResponse(output=[message], usage=Usage(), response_id=None)

    def stream_response(self, *args: Any, **kwargs: Any) -> AsyncIterator[Any]:
        raise NotImplementedError


poet = Agent(name="poet", instructions="You write one line.", model=OneLine())

worker = hw.Worker("poet", capabilities=["poetry"])


@worker.on("task")
async def write(task: hw.Message, ctx: hw.Context) -> dict[str, str]:
    answer = await Runner.run(poet, task.content)
    return {"line": answer.final_output}


async def main() -> None:
    async with hw.connect("memory://") as protocol, asyncio.TaskGroup() as group:
        serving = group.create_task(worker.serve(protocol))
        task = hw.Message(type="task", sender="me", to="poet", content="A line on queues, please.")
        print((await protocol.request(task, timeout_s=20)).content["line"])
        serving.cancel()


asyncio.run(main())
