"""Tools that a model may use, each within a policy: it reads what the run was given, and changes nothing."""

from __future__ import annotations

import asyncio
import re
import sqlite3
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from itertools import islice
from pathlib import Path
from typing import Any, Final

import msgspec

from hivewire.errors import BadAnswer
from hivewire.llm import Tool, ToolCall

_READ_BYTES: Final = 64 * 1024
_RESULT_CHARACTERS: Final = 20_000
_MOST_MATCHES: Final = 100
_MOST_ROWS: Final = 200
_QUERY_S: Final = 5.0
_LONGEST_VALUE: Final = 1_000_000
_SEARCH_S: Final = 5.0
_LINE_CHARACTERS: Final = 300
_TEXT_SAMPLE: Final = 8192


class Denied(Exception):
    """The policy does not allow it. The model is told so, and the run goes on."""


class Policy(msgspec.Struct, frozen=True, kw_only=True):
    """What tools may touch: files below `roots` (files or folders), and nothing else. Nothing may be written.

    A path is followed to where it really leads before it is compared, so that `..` and links do not lead out.
    """

    roots: tuple[str, ...] = ()

    def allowed(self, path: str) -> Path:
        """The real path. Raises `Denied`."""
        try:
            real = Path(path).resolve(strict=True)
        except (OSError, RuntimeError, ValueError) as error:
            raise Denied(f"{path!r} cannot be opened") from error
        for root in self.roots:
            below = Path(root).resolve()
            if real == below or below in real.parents:
                return real
        raise Denied(f"{path!r} is not among the files of this run")


class PolicyTool(ABC):
    """A tool that asks the policy first. `call` runs in a thread."""

    tool: Tool

    @abstractmethod
    def call(self, policy: Policy, arguments: Mapping[str, Any]) -> str:
        """The result as text. Raises `Denied`, or `ValueError` for arguments that make no sense."""


class ReadFile(PolicyTool):
    """Lines of a text file."""

    tool = Tool(
        name="read_file",
        description="Read a text file. At most 64 KiB a call: go on with `offset`, in bytes.",
        parameters={
            "type": "object",
            "properties": {"path": {"type": "string"}, "offset": {"type": "integer", "minimum": 0}},
            "required": ["path"],
        },
    )

    def call(self, policy: Policy, arguments: Mapping[str, Any]) -> str:
        path = policy.allowed(_text(arguments, "path"))
        offset = arguments.get("offset", 0)
        if type(offset) is not int or offset < 0:
            raise ValueError("offset is a whole number of bytes, 0 or more")
        if path.is_dir():
            names = sorted(entry.name + ("/" if entry.is_dir() else "") for entry in path.iterdir())
            return "\n".join(names) or "(an empty folder)"
        if not path.is_file():
            raise Denied(f"{path} is no regular file")
        with path.open("rb") as file:
            file.seek(offset)
            read = file.read(_READ_BYTES)
            more = bool(file.read(1))
        text = read.decode("utf-8", errors="replace")
        return f"{text}\n[more: offset {offset + len(read)}]" if more else text


class SearchText(PolicyTool):
    """Lines that hold a text."""

    tool = Tool(
        name="search_text",
        description="Find lines that contain a text (not a pattern), in a file or all files of a folder.",
        parameters={
            "type": "object",
            "properties": {
                "path": {"type": "string"},
                "text": {"type": "string"},
                "ignore_case": {"type": "boolean"},
            },
            "required": ["path", "text"],
        },
    )

    def call(self, policy: Policy, arguments: Mapping[str, Any]) -> str:
        top = policy.allowed(_text(arguments, "path"))
        wanted = _text(arguments, "text")
        flags = re.IGNORECASE if arguments.get("ignore_case") is True else 0
        matches = _matches(policy, top, re.compile(re.escape(wanted), flags))
        found = list(islice(matches, _MOST_MATCHES + 1))
        if not found:
            return "no line has it"
        if len(found) > _MOST_MATCHES:
            found[-1] = f"[more than {_MOST_MATCHES} lines: search for something rarer]"
        return "\n".join(found)


class QuerySqlite(PolicyTool):
    """Rows of a SQLite file."""

    tool = Tool(
        name="query_sqlite",
        description="Run one SELECT on a SQLite file. Tables: SELECT name, sql FROM sqlite_master. At most 200 rows.",
        parameters={
            "type": "object",
            "properties": {"path": {"type": "string"}, "sql": {"type": "string"}},
            "required": ["path", "sql"],
        },
    )

    def call(self, policy: Policy, arguments: Mapping[str, Any]) -> str:
        path = policy.allowed(_text(arguments, "path"))
        sql = _text(arguments, "sql")
        ends_at = time.monotonic() + _QUERY_S
        try:
            with closing(sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True)) as connection:
                connection.set_authorizer(_only_reads)
                connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, _LONGEST_VALUE)  # else one call fills the memory
                connection.set_progress_handler(lambda: time.monotonic() > ends_at, 10_000)
                cursor = connection.execute(sql)
                rows = cursor.fetchmany(_MOST_ROWS + 1)
                names = [column[0] for column in cursor.description or ()]
        except (sqlite3.Error, sqlite3.Warning) as error:
            raise ValueError(f"SQLite: {error}") from error
        lines = ["\t".join(names), *("\t".join(_cell(value) for value in row) for row in rows[:_MOST_ROWS])]
        if len(rows) > _MOST_ROWS:
            lines.append(f"[more than {_MOST_ROWS} rows: use LIMIT, WHERE or GROUP BY]")
        return "\n".join(lines)


READING: Final[tuple[PolicyTool, ...]] = (ReadFile(), SearchText(), QuerySqlite())


class Toolbox:
    """Tools under a policy. What goes wrong is told to the model as the tool's result; it never ends the run."""

    def __init__(self, policy: Policy, tools: Sequence[PolicyTool] = READING) -> None:
        self.policy = policy
        self._tools = {each.tool.name: each for each in tools}

    @property
    def offered(self) -> tuple[Tool, ...]:
        """What the model is told of; nothing while the policy allows nothing."""
        return tuple(each.tool for each in self._tools.values()) if self.policy.roots else ()

    async def use(self, call: ToolCall) -> str:
        """The result of a call that the model asks for."""
        tool = self._tools.get(call.name)
        if tool is None:
            return f"error: there is no tool {call.name!r}; there are {', '.join(self._tools)}"
        try:
            result = await asyncio.to_thread(tool.call, self.policy, call.decoded())
        except (Denied, BadAnswer, ValueError, OSError) as error:
            return f"error: {error}"
        if len(result) > _RESULT_CHARACTERS:
            return f"{result[:_RESULT_CHARACTERS]}\n[cut off after {_RESULT_CHARACTERS} characters]"
        return result


def _text(arguments: Mapping[str, Any], name: str) -> str:
    value = arguments.get(name)
    if not isinstance(value, str) or not value or "\x00" in value:
        raise ValueError(f"{name} is a text that is not empty")
    return value


def _cell(value: object) -> str:
    if isinstance(value, bytes):
        return f"<{len(value)} bytes>"
    return "NULL" if value is None else str(value).replace("\t", " ").replace("\n", " ")


def _only_reads(action: int, *_: object) -> int:
    reading = (sqlite3.SQLITE_SELECT, sqlite3.SQLITE_READ, sqlite3.SQLITE_FUNCTION, sqlite3.SQLITE_RECURSIVE)
    return sqlite3.SQLITE_OK if action in reading else sqlite3.SQLITE_DENY


def _matches(policy: Policy, top: Path, wanted: re.Pattern[str]) -> Iterator[str]:
    ends_at = time.monotonic() + _SEARCH_S
    for path in sorted(top.rglob("*")) if top.is_dir() else [top]:
        try:
            real = policy.allowed(str(path))  # a link below a root may lead out
            if not real.is_file():
                continue
            with real.open("rb") as file:
                if b"\x00" in file.read(_TEXT_SAMPLE):
                    continue
                file.seek(0)
                for number, line in enumerate(file, 1):
                    if time.monotonic() > ends_at:
                        yield f"[stopped after {_SEARCH_S:g} s: name a smaller folder or file]"
                        return
                    text = line.decode("utf-8", errors="replace").rstrip("\n")
                    if wanted.search(text):
                        yield f"{path}:{number}: {text[:_LINE_CHARACTERS]}"
        except (Denied, OSError):
            continue
