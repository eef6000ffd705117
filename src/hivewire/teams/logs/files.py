"""Files that are never seen half written."""

from __future__ import annotations

import hashlib
import secrets
from pathlib import Path
from typing import Any, TypeVar

import msgspec

T = TypeVar("T")


class StoredFile(msgspec.Struct, frozen=True):
    """A result too large for a message: its file name in the folder of pieces, and the hash of its bytes."""

    name: str
    sha256: str


def write_atomically(path: Path, content: bytes) -> None:
    """Write `content` to `path`: readers see the old file or the new one, a crash leaves one of them."""
    temporary = path.with_name(f".{path.name}-{secrets.token_hex(6)}")  # tempfile would make it private
    try:
        with temporary.open("xb") as file:
            file.write(content)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def store(folder: Path, label: str, value: Any) -> StoredFile:
    """Keep `value` as JSON under a name made of its content: doing it again changes nothing."""
    content = msgspec.json.encode(value)
    digest = hashlib.sha256(content).hexdigest()
    folder.mkdir(parents=True, exist_ok=True)
    stored = StoredFile(f"{label}-{digest[:16]}.json", digest)
    write_atomically(folder / stored.name, content)
    return stored


def load(folder: Path, stored: StoredFile, kind: type[T]) -> T:
    """Read back what `store` kept. Raises `ValueError` when the file is missing or is not what was stored."""
    path = folder / Path(stored.name).name  # a name from a message never leaves the folder
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error}") from error
    if hashlib.sha256(content).hexdigest() != stored.sha256:
        raise ValueError(f"{path} is not the file that was stored: its hash differs")
    return msgspec.json.decode(content, type=kind)
