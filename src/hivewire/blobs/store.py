"""What a place for large contents must do."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence


class BlobStore(ABC):
    """Bytes by name. Names are made by the engine and never used twice. Raises `BackendError`."""

    @abstractmethod
    async def put(self, name: str, body: bytes) -> None:
        """Stored as durably as the messages themselves when this returns."""

    @abstractmethod
    async def get(self, name: str) -> bytes | None:
        """None: there is none of that name."""

    @abstractmethod
    async def delete(self, names: Sequence[str]) -> None:
        """Names that are not there are passed over."""

    @abstractmethod
    async def names(self) -> list[str]: ...

    async def close(self) -> None:  # noqa: B027  # most have nothing to close
        """Nothing is asked any more."""
