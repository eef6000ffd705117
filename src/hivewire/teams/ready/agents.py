"""Ready agents: coder, analyst, researcher, writer, reviewer. Each is a `Worker` that asks a model."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from importlib import resources
from pathlib import Path
from typing import Any, Final

import msgspec

from hivewire import Context, Message, Reject, RetryAfter, SettingsError, Worker
from hivewire.coordination.budgeted import Spending
from hivewire.errors import BadAnswer, BudgetExceeded, ModelRefused, ModelUnavailable
from hivewire.llm import LLM, CompletionRequest, CompletionResponse, Turn
from hivewire.message import SUBTASKS
from hivewire.teams.ready.keeping import file_name, keep
from hivewire.teams.ready.reading import citations_of, code_of, confidence_of, rating_of, sources_of, word_count
from hivewire.teams.ready.tools import Policy, Toolbox

_MOST_ROUNDS: Final = 12
"""Of tools for one task."""
_AWAY_S: Final = 5.0


class Task(msgspec.Struct, frozen=True):
    """The content of a message that an agent takes: as a plan sends it, or only a `description` or `prompt`."""

    run: str = ""
    description: str = ""
    prompt: str = ""
    subtask: str = ""
    input: Any = None
    outputs: dict[str, Any] = {}
    feedback: str | None = None

    @property
    def out(self) -> str | None:
        """The folder of the run's results."""
        out = self.input.get("out") if isinstance(self.input, dict) else None
        return out if isinstance(out, str) else None

    @property
    def paths(self) -> tuple[str, ...]:
        """The files that the run was given."""
        paths = self.input.get("paths", ()) if isinstance(self.input, dict) else ()
        return tuple(path for path in paths if isinstance(path, str)) if isinstance(paths, list | tuple) else ()


class Kind(msgspec.Struct, frozen=True, kw_only=True):
    """What makes one kind of agent: names, temperatures and limits as in the reference system."""

    name: str
    capabilities: tuple[str, ...]
    temperature: float
    max_tokens: int
    read: Callable[[Task, str], dict[str, Any]]


def _coder(task: Task, text: str) -> dict[str, Any]:
    found = code_of(text)
    return {"code": found.code, "language": found.language, "answer": text}


def _analyst(task: Task, text: str) -> dict[str, Any]:
    return {"analysis": text, "confidence": confidence_of(text)}


def _researcher(task: Task, text: str) -> dict[str, Any]:
    return {
        "findings": text,
        "sources": sources_of(text),
        "citations": [msgspec.to_builtins(citation) for citation in citations_of(text)],
    }


def _writer(task: Task, text: str) -> dict[str, Any]:
    return {"content": text, "word_count": word_count(text)}


def _reviewer(task: Task, text: str) -> dict[str, Any]:
    """With `minimum_rating` in its input it sends work back that is rated lower: `review_of` names the subtask, else
    it is the only one that it was given."""
    rating = rating_of(text)
    output: dict[str, Any] = {"review": text, "rating": rating}
    asked = task.input if isinstance(task.input, dict) else {}
    least, reviewed = asked.get("minimum_rating"), asked.get("review_of")
    if reviewed is None and len(task.outputs) == 1:
        reviewed = next(iter(task.outputs))
    if isinstance(least, int | float) and rating is not None and rating < least and reviewed in task.outputs:
        output["send_back"] = {"subtask": reviewed, "feedback": text}
    return output


KINDS: Final[Mapping[str, Kind]] = {
    kind.name: kind
    for kind in (
        Kind(name="coder", capabilities=("code_generation", "code_review", "debugging", "refactoring"),
             temperature=0.2, max_tokens=2000, read=_coder),
        Kind(name="analyst", capabilities=("data_analysis", "statistical_analysis", "forecasting", "visualization"),
             temperature=0.3, max_tokens=1500, read=_analyst),
        Kind(name="researcher", capabilities=("research", "information_gathering", "synthesis", "summarization"),
             temperature=0.4, max_tokens=2000, read=_researcher),
        Kind(name="writer", capabilities=("content_creation", "editing", "copywriting", "technical_writing"),
             temperature=0.7, max_tokens=2000, read=_writer),
        Kind(name="reviewer", capabilities=("code_review", "content_review", "quality_assurance", "testing"),
             temperature=0.3, max_tokens=1500, read=_reviewer),
    )
}  # fmt: skip


def agent(
    kind: str,
    llm: LLM,
    *,
    name: str | None = None,
    model: str | None = None,
    concurrency: int = 4,
    policy: Policy | None = None,
    prompts: str | Path | None = None,
    spending: Spending | None = None,
) -> Worker:
    """A worker of one of `KINDS` that asks `llm`.

    Its output has the fields of its kind and `tokens_used`. In a run it also writes its answer to a file in the run's
    folder. `prompts` is a folder whose `<kind>.md` and `rules.md`
    replace the bundled ones. `policy` says which files its tools may read; None: those that the run was given
    (`input.paths`). `spending` pays each call from the accounts of the run, of its subtask, of the agent's name
    (`label/<name>`), of the day and of the month; None: nothing is counted. A model that is not available is asked
    again later, as a failed attempt; one that refuses, or a call that cannot be paid, rejects.
    """
    if kind not in KINDS:
        raise SettingsError(f"there is no ready agent {kind!r}; there are {', '.join(KINDS)}")
    what = KINDS[kind]
    system = f"{_prompt(prompts, kind)}\n{_prompt(prompts, 'rules')}"
    worker = Worker(name or kind, capabilities=what.capabilities, concurrency=concurrency)

    @worker.on()
    async def work(message: Message, ctx: Context) -> dict[str, Any]:
        task = _task_of(message.content)
        toolbox = Toolbox(policy or Policy(roots=task.paths))
        request = CompletionRequest(
            system=system,
            user=_asked(task),
            temperature=what.temperature,
            max_tokens=what.max_tokens,
            model=model,
            tools=toolbox.offered,
        )
        asked = llm if spending is None else _paid(llm, spending, task, ctx)
        answer, tokens_used = await _answered(asked, request, toolbox)
        output = {
            **what.read(task, answer.text),
            "tokens_used": tokens_used,
            "cut_off": answer.finish_reason == "length",
        }
        if task.out is not None and task.subtask:
            name = file_name(task.subtask, output.get("language"))
            text = output.get("code", answer.text)
            output["reports"] = {task.subtask: await asyncio.to_thread(keep, task.out, name, text)}
        return output

    return worker


def team(
    llm: LLM,
    *,
    policy: Policy | None = None,
    prompts: str | Path | None = None,
    spending: Spending | None = None,
) -> list[Worker]:
    """All of them."""
    return [agent(kind, llm, policy=policy, prompts=prompts, spending=spending) for kind in KINDS]


def _paid(llm: LLM, spending: Spending, task: Task, ctx: Context) -> LLM:
    subtasks = ctx.message.metadata.get(SUBTASKS)
    if task.run and task.subtask and isinstance(subtasks, int):
        spending = spending.of_subtask(task.run, task.subtask, subtasks)
    return spending.pay(llm, ctx.protocol, _scopes(task, ctx.worker.name))


def _scopes(task: Task, name: str) -> list[str]:
    run = [f"run/{task.run}", *([f"run/{task.run}/{task.subtask}"] if task.subtask else [])] if task.run else []
    return [*run, f"label/{name}"]


def _prompt(folder: str | Path | None, name: str) -> str:
    if folder is not None and (own := Path(folder) / f"{name}.md").is_file():
        return own.read_text(encoding="utf-8")
    return resources.files(__package__).joinpath("prompts", f"{name}.md").read_text(encoding="utf-8")


def _task_of(content: Any) -> Task:
    if isinstance(content, str):
        return Task(description=content)
    try:
        task = msgspec.convert(content, Task)
    except msgspec.ValidationError as error:
        raise Reject(f"the content is no task: {error}") from error
    if not (task.description or task.prompt or task.input):
        raise Reject("the content is no task: it has neither description nor prompt nor input")
    return task


def _asked(task: Task) -> str:
    """The task as the model sees it: what comes from others stands between marks, as material."""
    parts = [("task", task.description), ("task", task.prompt)]
    if task.input is not None:
        parts.append(("input", msgspec.json.format(msgspec.json.encode(task.input)).decode()))
    for name, output in task.outputs.items():
        text = output if isinstance(output, str) else msgspec.json.format(msgspec.json.encode(output)).decode()
        parts.append((f"output of {name}", text))
    if task.feedback:
        parts.append(("feedback on your last attempt", task.feedback))
    return "\n\n".join(f"<<< {_title(title)}\n{_without_marks(text)}\n>>>" for title, text in parts if text)


def _title(text: str) -> str:
    """On one line: the name of a subtask comes from others, too."""
    return _without_marks(" ".join(text.split()))


def _without_marks(text: str) -> str:
    """Material must not be able to end its own marks."""
    return text.replace("<<<", "< < <").replace(">>>", "> > >")


async def _answered(llm: LLM, request: CompletionRequest, toolbox: Toolbox) -> tuple[CompletionResponse, int]:
    """The answer after all the tools that the model asked for, and the tokens of all calls."""
    tokens_used = 0
    turns = list(request.conversation())
    for _ in range(_MOST_ROUNDS):
        try:
            answer = await llm.complete(msgspec.structs.replace(request, user="", turns=tuple(turns)))
        except ModelUnavailable as error:
            raise RetryAfter(error.retry_after_s if error.retry_after_s is not None else _AWAY_S, str(error)) from error
        except (ModelRefused, BudgetExceeded) as error:
            raise Reject(str(error)) from error
        tokens_used += answer.tokens_used
        if not answer.tool_calls:
            if not answer.text.strip():
                raise BadAnswer(f"the model gave no text (it ended with {answer.finish_reason!r})")
            return answer, tokens_used
        turns.append(Turn(role="assistant", text=answer.text, tool_calls=answer.tool_calls))
        turns += [Turn(role="tool", text=await toolbox.use(call), tool_call_id=call.id) for call in answer.tool_calls]
    raise BadAnswer(f"the model asked for tools {_MOST_ROUNDS} times and gave no answer")
