"""The memory backend: a full backend in one process, on real or virtual time."""

from hivewire.backends.memory.backend import MemoryBackend

__all__ = ["MemoryBackend"]
