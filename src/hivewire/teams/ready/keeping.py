"""Answers as files, in the folder of a run: doing a subtask again writes the same file again."""

from __future__ import annotations

import hashlib
import os
import re
from pathlib import Path
from typing import Final

_UNSAFE: Final = re.compile(r"[^A-Za-z0-9._-]+")
_MOST_NAME: Final = 100
_ENDINGS: Final = {
    "bash": "sh", "c": "c", "c++": "cpp", "cpp": "cpp", "css": "css", "go": "go", "html": "html", "java": "java",
    "javascript": "js", "json": "json", "py": "py", "python": "py", "ruby": "rb", "rust": "rs", "sh": "sh",
    "shell": "sh", "sql": "sql", "toml": "toml", "typescript": "ts", "yaml": "yaml",
}  # fmt: skip


def file_name(subtask: str, language: str | None) -> str:
    """A name for the answer to a subtask: two subtasks never share one.

    >>> file_name("draft", None), file_name("mean", "python")
    ('draft.md', 'mean.py')
    """
    safe = _UNSAFE.sub("-", subtask).strip(".-")[:_MOST_NAME]
    if safe != subtask:
        safe = f"{safe or 'answer'}-{hashlib.sha256(subtask.encode()).hexdigest()[:8]}"
    return f"{safe}.{'md' if language is None else _ENDINGS.get(language, 'txt')}"


def keep(folder: str, name: str, text: str) -> str:
    """Write the file whole or not at all. Returns its path."""
    path = Path(folder) / name
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{name}.{os.getpid()}")
    draft.write_text(text if text.endswith("\n") else f"{text}\n", encoding="utf-8")
    draft.replace(path)
    return str(path)
