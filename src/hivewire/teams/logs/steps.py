"""What each member of the team does with a subtask: content of the message in, output out.

Plain functions over files: they run in any process, and doing one again gives the same output. What is too large for
a message lies in `out`/pieces under a name made of its content; messages carry the name and the hash.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, TypeVar

import msgspec

from hivewire import Reject
from hivewire.teams.logs.files import StoredFile, load, store, write_atomically
from hivewire.teams.logs.findings import Findings, Mined, MinedPiece, gather
from hivewire.teams.logs.mining import Miner, PieceSummary
from hivewire.teams.logs.report import markdown, page, top_templates
from hivewire.teams.logs.sample import write_sample
from hivewire.teams.logs.sources import Changed, Inventory, Piece, Skipped, find, read, size_of, split

MACHINE_LOGS: Final = "/var/log"
SAMPLE_LINES: Final = 600_000
_SEED: Final = 20_260_312
_INLINE_BYTES: Final = 400_000  # of pieces in messages; beyond that they go into files
_MOST_MACHINE_BYTES: Final = 64 << 20
_SHOWN_NAMES: Final = 2
_MOST_TEMPLATES: Final = 5000  # in report.json, the most frequent ones

T = TypeVar("T")


class Wanted(msgspec.Struct, frozen=True):
    """The input of a run: the files to read (none: this machine's logs and a sample) and where results go."""

    out: str
    paths: list[str] = []
    pieces: int = 26
    sample_lines: int = SAMPLE_LINES  # of the sample that is added when no path is given
    seed: int = _SEED
    machine_logs: bool = True

    @property
    def folder(self) -> Path:
        return Path(self.out).absolute()

    @property
    def pieces_folder(self) -> Path:
        return self.folder / "pieces"


class Subtask(msgspec.Struct, frozen=True):
    """The content of a message that hands out a subtask."""

    run: str
    subtask: str
    input: dict[str, Any]
    description: str = ""
    attempt: int = 1
    outputs: dict[str, Any] = {}
    feedback: str | None = None

    @property
    def wanted(self) -> Wanted:
        return _converted(self.input, Wanted, f"the input of {self.subtask}")


class MineInput(msgspec.Struct, frozen=True):
    """An analyst's share: the pieces themselves, or the file in which they are listed."""

    batch: list[Piece] = []
    stored_batch: StoredFile | None = None


class SendBack(Exception):
    """The work of an earlier subtask cannot be used; it is to be done again, with this feedback."""

    def __init__(self, subtask: str, feedback: str) -> None:
        super().__init__(f"{subtask}: {feedback}")
        self.subtask = subtask
        self.feedback = feedback


def answer(step: Callable[[Subtask], dict[str, Any]], content: Any) -> dict[str, Any]:
    """The output of a step for the content of a message. Raises `Reject` when that is not a subtask."""
    try:
        return step(_converted(content, Subtask, "the content of the message"))
    except SendBack as back:
        return {"send_back": {"subtask": back.subtask, "feedback": back.feedback}}


def _converted(value: Any, kind: type[T], what: str) -> T:
    try:
        return msgspec.convert(value, kind)
    except msgspec.ValidationError as error:
        raise Reject(f"{what} is wrong: {error}") from error


def research(task: Subtask) -> dict[str, Any]:
    """Find the files, cut them into pieces, and make a subtask for each share of the pieces."""
    wanted = task.wanted
    wanted.pieces_folder.mkdir(parents=True, exist_ok=True)
    paths = list(wanted.paths)
    files, skipped = find(paths, without=wanted.folder) if paths else _default_files(wanted)
    inventory = split(files, wished=wanted.pieces)
    known = {entry.path for entry in inventory.skipped}
    inventory.skipped.extend(entry for entry in skipped if entry.path not in known)
    inventory.skipped.sort(key=lambda entry: entry.path)
    if not inventory.sources:
        reasons = "; ".join(f"{entry.path}: {entry.reason}" for entry in inventory.skipped[:5])
        raise Reject(f"nothing to read in {', '.join(paths) or MACHINE_LOGS} ({reasons or 'no file at all'})")
    return {
        "inventory": msgspec.to_builtins(store(wanted.pieces_folder, "inventory", inventory)),
        "files": len(inventory.sources),
        "skipped": len(inventory.skipped),
        "pieces": len(inventory.pieces),
        "bytes": sum(source.size for source in inventory.sources),
        "subtasks": _mine_subtasks(wanted, inventory.pieces),
    }


def _default_files(wanted: Wanted) -> tuple[list[str], list[Skipped]]:
    files, skipped = find([MACHINE_LOGS], without=wanted.folder) if wanted.machine_logs else ([], [])
    files, left_out = _smallest(files)
    skipped = skipped + left_out
    if wanted.sample_lines:
        sample = write_sample(wanted.folder / "sample", lines=wanted.sample_lines, seed=wanted.seed)
        more, left = find([sample.folder])
        files, skipped = sorted({*files, *more}), skipped + left
    return files, skipped


def _smallest(files: Sequence[str]) -> tuple[list[str], list[Skipped]]:
    """As many as a demonstration can bear: nobody asked for the gigabytes of this machine."""
    chosen, left_out, total = [], [], 0
    for size, path in sorted((size_of(path), path) for path in files):
        total += size
        if total <= _MOST_MACHINE_BYTES:
            chosen.append(path)
        else:
            told = f"more than {_MOST_MACHINE_BYTES >> 20} MiB of this machine's logs: name it with --input to read it"
            left_out.append(Skipped(path, told))
    return sorted(chosen), left_out


def _mine_subtasks(wanted: Wanted, pieces: Sequence[Piece]) -> list[dict[str, Any]]:
    batches = list(_batches(pieces, wanted.pieces))
    inputs = [{"batch": msgspec.to_builtins(batch)} for batch in batches]
    if len(msgspec.json.encode(inputs)) > _INLINE_BYTES:
        stored = [store(wanted.pieces_folder, "batch", batch) for batch in batches]
        inputs = [{"stored_batch": msgspec.to_builtins(place)} for place in stored]
    return [
        {
            "name": f"mine-{number}",
            "description": f"Count templates, rates and errors in {_told(batch)}",
            "assigned_to": "data_analysis",
            "dependencies": ["find"],
            "priority": 5,
            "input": input_,
        }
        for number, (batch, input_) in enumerate(zip(batches, inputs, strict=True), 1)
    ]


def _batches(pieces: Sequence[Piece], wished: int) -> Iterator[list[Piece]]:
    """Neighbours together, as long as they are small: a thousand tiny files are not a thousand subtasks."""
    most = max((piece.end - piece.start for piece in pieces), default=0)
    most = max(most, sum(piece.end - piece.start for piece in pieces) // max(1, wished))
    batch: list[Piece] = []
    size = 0
    for piece in pieces:
        length = piece.end - piece.start
        if batch and size + length > most:
            yield batch
            batch, size = [], 0
        batch.append(piece)
        size += length
    if batch:
        yield batch


def _told(batch: Sequence[Piece]) -> str:
    names = list(dict.fromkeys(Path(piece.path).name for piece in batch))
    left = len(names) - _SHOWN_NAMES
    more = f" and {left} more" if left > 0 else ""
    size = sum(piece.end - piece.start for piece in batch) / 1e6
    return f"{size:.1f} MB of {', '.join(names[:_SHOWN_NAMES])}{more}"


def mine(task: Subtask) -> dict[str, Any]:
    """Count what is in the pieces, and store it."""
    folder = task.wanted.pieces_folder
    share = _converted(task.input, MineInput, f"the input of {task.subtask}")
    batch = share.batch
    if share.stored_batch:
        batch = _loaded(folder, share.stored_batch, list[Piece], "find")
    mined = Mined([], PieceSummary())
    for piece in batch:
        miner = Miner(piece.path, piece.modified_at)
        try:
            for offset, block in read(piece):
                miner.add(block, offset)
        except Changed as error:  # what was read of it is not counted: it is not what was found
            mined.pieces.append(MinedPiece(piece, 0, str(error)))
        else:
            mined.pieces.append(MinedPiece(piece, miner.summary.total.lines))
            mined.summary.add(miner.summary)
    total = mined.summary.total
    return {
        "summary": msgspec.to_builtins(store(folder, task.subtask, mined)),
        "pieces": len(mined.pieces),
        "changed": sum(bool(result.changed) for result in mined.pieces),
        "lines": total.lines,
        "bytes": total.bytes,
        "templates": len(mined.summary.templates),
    }


def _loaded(folder: Path, stored: StoredFile, kind: type[T], maker: str) -> T:
    try:
        return load(folder, stored, kind)
    except ValueError as error:
        raise SendBack(maker, str(error)) from error


def results_of(task: Subtask) -> tuple[Inventory, dict[str, Mined]]:
    """What the researcher found, and what the analysts made of it, by subtask. Raises `SendBack`."""
    folder = task.wanted.pieces_folder
    mined = {
        name: _loaded(folder, _stored_in(output, "summary", name), Mined, name)
        for name, output in sorted(task.outputs.items())
        if name.startswith("mine-")
    }
    found = _stored_in(task.outputs.get("find"), "inventory", "find")
    return _loaded(folder, found, Inventory, "find"), mined


def _stored_in(output: Any, field: str, maker: str) -> StoredFile:
    value = output.get(field) if isinstance(output, Mapping) else None
    return _converted(value, StoredFile, f"the {field} in the output of {maker}")


def write(task: Subtask) -> dict[str, Any]:
    """Make report.md, report.html and report.json. Feedback needs no other work: the report is made anew."""
    folder = task.wanted.folder
    inventory, mined = results_of(task)
    findings = gather(inventory, mined.values())
    contents = {
        "report.md": markdown(findings).encode(),
        "report.html": page(findings).encode(),
        "report.json": _machine_readable(findings),
    }
    for name, content in contents.items():
        write_atomically(folder / name, content)
    return {
        "reports": {name: str(folder / name) for name in contents},
        "sha256": {name: hashlib.sha256(content).hexdigest() for name, content in contents.items()},
        **{key: value for key, value in findings.facts().items() if " " not in key},
    }


def _machine_readable(findings: Findings) -> bytes:
    whole = {
        "facts": findings.facts(),
        "files": findings.accounts,
        "skipped": findings.inventory.skipped,
        "bursts": findings.bursts,
        "templates": dict(top_templates(findings)[:_MOST_TEMPLATES]),
    }
    return json.dumps(msgspec.to_builtins(whole), indent=1, sort_keys=True, ensure_ascii=False).encode() + b"\n"
