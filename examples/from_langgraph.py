"""A graph of langgraph as a worker. Offline, its one node needs no model:

python examples/from_langgraph.py
"""

from __future__ import annotations

import asyncio
from typing import TypedDict

from langgraph.graph import END, START, StateGraph

import hivewire as hw


class State(TypedDict):
    wish: str
    line: str


def compose(state: State) -> dict[str, str]:
    return {"line": "A queue of words, in order kept"}


steps = StateGraph(State)
steps.add_node("compose", compose)
steps.add_edge(START, "compose")
steps.add_edge("compose", END)
poet = steps.compile()

worker = hw.Worker("poet", capabilities=["poetry"])


@worker.on("task")
async def write(task: hw.Message, ctx: hw.Context) -> dict[str, str]:
    state = await poet.ainvoke({"wish": task.content, "line": ""})
    return {"line": state["line"]}


async def main() -> None:
    async with hw.connect("memory://") as protocol, asyncio.TaskGroup() as group:
        serving = group.create_task(worker.serve(protocol))
        task = hw.Message(type="task", sender="me", to="poet", content="A line on queues, please.")
        print((await protocol.request(task, timeout_s=20)).content["line"])
        serving.cancel()


asyncio.run(main())
