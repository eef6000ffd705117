"""A task, a plan by a model, and a team that carries it out. Offline everything is scripted:

    python examples/basic_team.py

With a key a real model plans and works:

    HIVEWIRE_LLM_MODEL=openai:gpt-4.1 OPENAI_API_KEY=… python examples/basic_team.py
"""

from __future__ import annotations

import asyncio

import hivewire as hw
from hivewire.llm import LLM, CompletionRequest, model_from
from hivewire.settings import load
from hivewire.teams.ready import team
from hivewire.testing.scripted_model import Answer, ScriptedModel

PLAN = {
    "subtasks": [
        {"name": "find", "assigned_to": "research", "description": "What do bees do in winter?"},
        {
            "name": "write",
            "assigned_to": "content_creation",
            "description": "A sentence for children.",
            "dependencies": ["find"],
        },
        {
            "name": "check",
            "assigned_to": "content_review",
            "description": "Is it right, and can a child read it?",
            "dependencies": ["write"],
        },
    ]
}


def scripted(request: CompletionRequest) -> Answer:
    asked = request.conversation()[-1].text
    if request.schema is not None:
        return PLAN
    if "What do bees do" in asked:
        return "They form a cluster and keep the queen warm [1].\n\n[1] https://example.org/bees"
    if "A sentence for children" in asked:
        return "In winter the bees cuddle up to keep their queen warm."
    return "Right, and short enough.\nRating: 9/10"


async def main() -> None:
    settings = load()
    model: LLM = model_from(settings) if settings.llm.model else ScriptedModel(scripted)
    workers = team(model)
    async with hw.connect("memory://") as protocol, asyncio.TaskGroup() as group:
        serving = [group.create_task(worker.serve(protocol)) for worker in workers]
        async with hw.Coordinator(model, protocol, team=workers) as coordinator:
            task = hw.TaskRequest(name="bees", description="Tell children what bees do in winter.")
            result = await coordinator.execute(task, timeout_s=300)
            print(result.status, result.error)
            for name, output in result.output.items():
                print(f"{name}: {output.get('content') or output.get('findings') or output.get('rating')}")
        for task_of_worker in serving:
            task_of_worker.cancel()


asyncio.run(main())
