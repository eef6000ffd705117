"""Queues in a Redis server (or one that speaks as it does), shared by any number of hosts."""

from hivewire.backends.redis.backend import RedisBackend

__all__ = ["RedisBackend"]
