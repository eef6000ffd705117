"""Answers of a model kept in a file, to be given again: for tests and for repeating a run without paying twice."""

from __future__ import annotations

import asyncio
import fcntl
import hashlib
from collections.abc import AsyncGenerator
from contextlib import aclosing
from io import SEEK_END, FileIO
from pathlib import Path
from typing import Literal

import msgspec

from hivewire.errors import ModelRefused, SettingsError
from hivewire.llm.contract import LLM, CompletionRequest, CompletionResponse, Piece


class _Entry(msgspec.Struct):
    key: str
    request: CompletionRequest
    response: CompletionResponse


class Recorded(LLM):
    """A model whose answers are in `path`, a file of JSON lines.

    `replay` gives only what is there, and refuses the rest; `record` asks `llm` each time and adds its answer; `auto`
    asks `llm` only for what is not there. The same request, asked again, gets the next of its answers, and after the
    last one the last again. A request is the same when all its fields but `timeout_s` are. The file holds prompts and
    answers as they are, and no keys.
    """

    def __init__(
        self, path: str | Path, llm: LLM | None = None, *, mode: Literal["replay", "record", "auto"] = "replay"
    ) -> None:
        if mode not in ("replay", "record", "auto"):
            raise SettingsError(f"recorded model {path}: mode is 'replay', 'record' or 'auto', not {mode!r}")
        if mode != "replay" and llm is None:
            raise SettingsError(f"recorded model {path}: mode {mode!r} needs a model to ask")
        self._path = Path(path)
        self._llm = llm
        self._mode = mode
        self._answers: dict[str, list[CompletionResponse]] | None = None
        self._given: dict[str, int] = {}
        self._turn = asyncio.Lock()

    async def complete(self, request: CompletionRequest) -> CompletionResponse:
        known = await self._known(request)
        if known is not None:
            return known
        assert self._llm is not None
        response = await self._llm.complete(request)
        await self._keep(request, response)
        return response

    async def stream(self, request: CompletionRequest) -> AsyncGenerator[Piece]:
        known = await self._known(request)
        if known is not None:
            for word in known.text.splitlines(keepends=True):
                yield Piece(text=word)
            yield Piece(response=known)
            return
        assert self._llm is not None
        async with aclosing(self._llm.stream(request)) as pieces:
            async for piece in pieces:
                if piece.response is not None:
                    await self._keep(request, piece.response)
                yield piece

    async def close(self) -> None:
        if self._llm is not None:
            await self._llm.close()

    async def _known(self, request: CompletionRequest) -> CompletionResponse | None:
        """The next recorded answer; None: ask the model."""
        if self._mode == "record":
            return None
        async with self._turn:
            if self._answers is None:
                self._answers = await asyncio.to_thread(_read, self._path)
        key = _key(request)
        answers = self._answers.get(key, [])
        given = self._given.get(key, 0)
        if given < len(answers) or (answers and self._mode == "replay"):
            self._given[key] = given + 1
            return answers[min(given, len(answers) - 1)]
        if self._mode == "auto":
            return None
        lacks = "has no answer to this request" if self._path.exists() else "is not there, to answer"
        raise ModelRefused(f"{self._path} {lacks}: {request.user[:100]!r}; record it first")

    async def _keep(self, request: CompletionRequest, response: CompletionResponse) -> None:
        async with self._turn:
            await asyncio.to_thread(_add, self._path, _Entry(_key(request), request, response))
        key = _key(request)
        if self._answers is not None:
            self._answers.setdefault(key, []).append(response)
        self._given[key] = self._given.get(key, 0) + 1


def _key(request: CompletionRequest) -> str:
    same = msgspec.structs.replace(request, timeout_s=None)
    return hashlib.sha256(msgspec.json.encode(same, order="deterministic")).hexdigest()


def _read(path: Path) -> dict[str, list[CompletionResponse]]:
    answers: dict[str, list[CompletionResponse]] = {}
    try:
        *lines, tail = path.read_bytes().split(b"\n")
    except FileNotFoundError:
        return answers
    except OSError as error:
        raise SettingsError(f"recorded model {path}: {error}") from error
    if _is_whole(tail):  # else it is being written, or was when its process died
        lines.append(tail)
    for number, line in enumerate(lines, 1):
        try:
            entry = msgspec.json.decode(line, type=_Entry)
        except msgspec.MsgspecError as error:
            raise SettingsError(f"recorded model {path}: line {number} is no recorded answer: {error}") from error
        answers.setdefault(_key(entry.request), []).append(entry.response)
    return answers


def _is_whole(tail: bytes) -> bool:
    """What stands behind the last end of a line."""
    try:
        return bool(msgspec.json.decode(tail, type=_Entry))
    except msgspec.MsgspecError:
        return False


def _end_at_a_line(file: FileIO) -> None:
    """Cut off what a process that died while it wrote has left: nothing behind it could be read."""
    size = file.seek(0, SEEK_END)
    file.seek(max(size - 1, 0))
    if file.read(1) in (b"", b"\n"):
        return
    file.seek(0)
    tail = file.read().rpartition(b"\n")[2]
    if _is_whole(tail):
        file.write(b"\n")
    else:
        file.truncate(size - len(tail))


def _add(path: Path, entry: _Entry) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a+b", buffering=0) as file:
            fcntl.flock(file, fcntl.LOCK_EX)  # of each process in its turn; ends with the file
            _end_at_a_line(file)
            left = msgspec.json.encode(entry) + b"\n"
            while left:
                left = left[file.write(left) :]
    except OSError as error:
        raise SettingsError(f"recorded model {path}: the answer cannot be kept: {error.strerror}") from error
