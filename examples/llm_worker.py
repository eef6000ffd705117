"""A worker that asks a language model. Offline it runs with a scripted one:

    python examples/llm_worker.py

With a key it asks a real one: HIVEWIRE_LLM_MODEL=openai:gpt-4.1 OPENAI_API_KEY=… python examples/llm_worker.py
"""

from __future__ import annotations

import asyncio

import hivewire as hw
from hivewire.llm import LLM, model_from
from hivewire.settings import load
from hivewire.teams.ready import agent
from hivewire.testing.scripted_model import ScriptedModel

OFFLINE = [
    "```python\ndef mean(numbers):\n    return sum(numbers) / len(numbers)\n```\nAn empty list raises.",
    "It does what it says, but an empty list raises ZeroDivisionError.\nRating: 7/10",
]


def model() -> LLM:
    settings = load()
    return model_from(settings) if settings.llm.model else ScriptedModel(OFFLINE)


async def main() -> None:
    llm = model()
    async with hw.connect("memory://") as protocol, asyncio.TaskGroup() as group:
        serving = [group.create_task(agent(kind, llm).serve(protocol)) for kind in ("coder", "reviewer")]
        task = hw.Message(
            type="task", sender="me", to="coder", content="Write a Python function for the mean of a list."
        )
        written = (await protocol.request(task, timeout_s=120)).content
        print(written["code"])
        content = {"description": "Review this function.", "outputs": {"mean": written["code"]}}
        review = hw.Message(type="task", sender="me", to="reviewer", content=content)
        judged = (await protocol.request(review, timeout_s=120)).content
        print(f"rating {judged['rating']:g} of 10; {written['tokens_used'] + judged['tokens_used']} tokens")
        for task_of_worker in serving:
            task_of_worker.cancel()


asyncio.run(main())
