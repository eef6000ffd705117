"""The state of a run of a plan, what happens to it (events) and what follows (commands)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal

import msgspec

from hivewire.errors import CoordinationError, InvalidPlan
from hivewire.message import BEGUN, EFFECTS, SUBTASKS
from hivewire.rules.plan import Graph, Plan, Subtask, checked_graph
from hivewire.rules.plan_limits import RunLimits

SCHEMA: Final = 3
"""Raised whenever older code could misread what this code writes."""

SubtaskStatus = Literal["waiting", "running", "done", "failed", "skipped", "cancelled"]
RunStatus = Literal["new", "running", "done", "failed", "cancelled"]
UNFINISHED: Final = ("new", "running")


class Row(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Where one subtask stands. (`version`, `attempt`) name its latest sending, `message_id` the message."""

    spec: Subtask
    status: SubtaskStatus = "waiting"
    made_by: str | None = None
    """The subtask whose result added this one."""
    version: int = 0
    attempt: int = 0
    message_id: str = ""
    timer: int = 0
    send_backs: int = 0
    resends: int = 0
    """How often its message had vanished and it was sent anew."""
    feedback: str | None = None
    output: Any = None
    error: str = ""
    sent_at: float = 0.0
    ended_at: float = 0.0

    @property
    def is_open(self) -> bool:
        return self.status in ("waiting", "running")


class Header(msgspec.Struct, frozen=True, kw_only=True):
    """What is known of a run but for its subtasks. `seq` counts the events that changed something."""

    run: str
    name: str = ""
    status: RunStatus = "new"
    reason: str = ""
    version: int = 1
    seq: int = 0
    timers: int = 0
    input: dict[str, Any] = {}
    capabilities: tuple[str, ...] = ()
    description: str = ""
    plans_left: int = 0
    """How often a model may still be asked for a plan: at the start without one, and when subtasks have failed."""
    planning: str = ""
    """The id of the command that asks for a plan, until it is answered."""
    timeout_s: float | None = None
    """The run's own, from its start."""
    timer: int = 0
    started_at: float = 0.0
    ended_at: float = 0.0
    limits: RunLimits = RunLimits()
    facts: tuple[str, ...] = ()
    guesses: tuple[str, ...] = ()
    """What the model has said it knows, and what it supposes, with its latest plan."""
    stalls: int = 0
    """How many plans in a row have ended without one more subtask finished."""
    finished_before: int = 0
    """How many subtasks were finished when the model was asked last."""
    schema: int = SCHEMA


@dataclass(frozen=True, slots=True)
class RunState:
    """A run. Never changed: `step` returns another one that shares what stayed the same."""

    header: Header
    rows: Mapping[str, Row]
    graph: Graph
    """Follows from the rows; made anew with each plan version."""

    @property
    def is_finished(self) -> bool:
        return self.header.status not in UNFINISHED


class Started(msgspec.Struct, frozen=True, tag="started"):
    at: float


class Begun(msgspec.Struct, frozen=True, kw_only=True, tag="begun"):
    """A handler of this attempt has started; its time to live counts from here."""

    at: float
    version: int
    subtask: str
    attempt: int


def begun_message(content: Any) -> str | None:
    """The id of the message whose handler starts, if this is the content of an event that tells so."""
    if not isinstance(content, Mapping) or content.get("state") != BEGUN:
        return None
    return str(content.get("message"))


class Result(msgspec.Struct, frozen=True, kw_only=True, tag="result"):
    """An attempt ended well. `subtasks` (as read from JSON) become the next plan version."""

    at: float
    version: int
    subtask: str
    attempt: int
    output: Any = None
    subtasks: Any = None


class Failed(msgspec.Struct, frozen=True, kw_only=True, tag="failed"):
    """An attempt ended badly, and nobody will try its message again."""

    at: float
    version: int
    subtask: str
    attempt: int
    error: str


class Vanished(msgspec.Struct, frozen=True, kw_only=True, tag="vanished"):
    """The message of this attempt, and its answer, are nowhere: neither waiting, nor in hand, nor dead."""

    at: float
    version: int
    subtask: str
    attempt: int


class SendBack(msgspec.Struct, frozen=True, kw_only=True, tag="send_back"):
    """A reviewer (`subtask`) asks for `target`, on which it depends, to be done again."""

    at: float
    version: int
    subtask: str
    attempt: int
    target: str
    feedback: str
    output: Any = None


class Timer(msgspec.Struct, frozen=True, kw_only=True, tag="timer"):
    """A timer went off; stale unless `generation` is the subtask's present one. Without a subtask it is the run's."""

    at: float
    subtask: str
    generation: int


class Planned(msgspec.Struct, frozen=True, kw_only=True, tag="planned"):
    """The answer to the command `MakePlan` of this id: subtasks (as read from JSON) in place of those that are not
    done, or why there is no plan. `capabilities` are those that the plan was checked against."""

    at: float
    command: str
    subtasks: Any = None
    capabilities: tuple[str, ...] = ()
    facts: tuple[str, ...] = ()
    guesses: tuple[str, ...] = ()
    error: str = ""


class Cancel(msgspec.Struct, frozen=True, tag="cancel"):
    at: float
    reason: str = "cancelled"


Event = Started | Begun | Result | Failed | Vanished | SendBack | Timer | Planned | Cancel


class Incoming(msgspec.Struct, frozen=True):
    """An event and the id by which it is known when it comes again."""

    id: str
    event: Event


class Dispatch(msgspec.Struct, frozen=True, kw_only=True, tag="dispatch"):
    """Send this attempt to a worker with the capability. `id` is the message's id."""

    id: str
    subtask: str
    version: int
    attempt: int
    capability: str
    priority: int


class SetTimer(msgspec.Struct, frozen=True, kw_only=True, tag="set_timer"):
    """Give back `Timer` at `due_at`. Replaces the subtask's earlier timer."""

    id: str
    subtask: str
    generation: int
    due_at: float


class Stop(msgspec.Struct, frozen=True, kw_only=True, tag="stop"):
    """The subtasks with these messages are not wanted any more, wherever they are; without any: nothing of the run."""

    id: str
    messages: tuple[str, ...] = ()


class MakePlan(msgspec.Struct, frozen=True, kw_only=True, tag="make_plan"):
    """Ask for a plan and give back `Planned`. `errors` say what went wrong with the one before."""

    id: str
    errors: tuple[str, ...] = ()


class Finish(msgspec.Struct, frozen=True, kw_only=True, tag="finish"):
    """The run is over."""

    id: str
    status: RunStatus
    reason: str


Command = Dispatch | Stop | SetTimer | MakePlan | Finish
KeptCommand = Dispatch | Stop | MakePlan
"""What stays in the outbox until it is carried out."""


def new_run(
    run: str, plan: Plan, capabilities: Iterable[str], run_input: Mapping[str, Any] | None = None, **header_fields: Any
) -> RunState:
    """A run that has not begun. Raises `InvalidPlan`. Without subtasks it begins with a `MakePlan`."""
    known = tuple(sorted(set(capabilities)))
    graph = checked_graph(plan.subtasks, known)
    header = Header(run=run, name=plan.name, input=dict(run_input or {}), capabilities=known, **header_fields)
    return RunState(header, {subtask.name: Row(spec=subtask) for subtask in plan.subtasks}, graph)


def content_of(state: RunState, row: Row) -> dict[str, Any]:
    """What the message of a subtask says to its worker. The subtask's own input goes before the run's."""
    name = row.spec.name
    return {
        "run": state.header.run,
        "subtask": name,
        "description": row.spec.description,
        "attempt": row.attempt,
        "input": {**state.header.input, **row.spec.input},
        "outputs": {dependency: state.rows[dependency].output for dependency in state.graph.after[name]},
        "feedback": row.feedback,
    }


def marks_of(state: RunState, row: Row, mailbox: str) -> dict[str, Any]:
    """What the metadata of a subtask's message says: where its answer goes, by what its effects are remembered (the
    same over new attempts, send-backs and new plans), how many share the run's budget, and, where its time is
    limited, that its start is to be told."""
    marks = {
        "reply_to": mailbox,
        "progress_to": mailbox,
        EFFECTS: f"{state.header.run}/{row.spec.name}",
        SUBTASKS: len(state.rows),
    }
    return marks if row.spec.timeout_s is None else {**marks, "start_to": mailbox}


def event_of(row: Row, output: Any, at: float) -> Event:
    """What a handler's return value means for the attempt in `row`."""
    here: dict[str, Any] = {"at": at, "version": row.version, "subtask": row.spec.name, "attempt": row.attempt}
    if isinstance(output, (bytes, bytearray)):
        return Failed(**here, error="the handler returned bytes; a subtask's output must be a JSON value")
    if not isinstance(output, dict):
        return Result(**here, output=output)
    rest = {key: value for key, value in output.items() if key not in ("subtasks", "send_back")}
    back = output.get("send_back")
    if back is None:
        return Result(**here, output=rest, subtasks=output.get("subtasks"))
    if output.get("subtasks"):
        return Failed(**here, error="the handler returned both send_back and subtasks; choose one")
    if not isinstance(back, dict) or not isinstance(back.get("subtask"), str):
        return Failed(**here, error='send_back must be an object {"subtask": name, "feedback": text}')
    return SendBack(**here, target=back["subtask"], feedback=str(back.get("feedback", "")), output=rest)


_header_reader = msgspec.json.Decoder(Header)
_row_reader = msgspec.json.Decoder(Row)
_event_reader: msgspec.json.Decoder[Event] = msgspec.json.Decoder(Event)
_command_reader: msgspec.json.Decoder[Command] = msgspec.json.Decoder(Command)


class _Schema(msgspec.Struct):
    schema: int


def dump(part: Header | Row | Event | Command) -> bytes:
    """The stored form of a part of the state."""
    return msgspec.json.encode(part)


def load_header(stored: bytes) -> Header:
    """Raises `CoordinationError` for a state that newer code has written."""
    schema = msgspec.json.decode(stored, type=_Schema).schema
    if schema > SCHEMA:
        raise CoordinationError(
            f"this run was written by a newer version (state schema {schema}, this one reads up to {SCHEMA}); "
            "use that version to go on with it"
        )
    return _header_reader.decode(stored)


def load_event(stored: bytes) -> Event:
    return _event_reader.decode(stored)


def load_command(stored: bytes) -> Command:
    return _command_reader.decode(stored)


def load_row(stored: bytes) -> Row:
    return _row_reader.decode(stored)


def load_state(header: bytes, rows: Iterable[bytes]) -> RunState:
    """The whole state from its stored parts, rows in the order of the plan."""
    head = load_header(header)
    read = [_row_reader.decode(row) for row in rows]
    try:
        graph = Graph([row.spec for row in read])
    except InvalidPlan as error:
        raise CoordinationError(f"the stored plan of run {head.run} is damaged: {error}") from error
    return RunState(head, {row.spec.name: row for row in read}, graph)
