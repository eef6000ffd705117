"""All peers by name: those of the package, and the libraries and frameworks that people install."""

from __future__ import annotations

from typing import Final

from hivewire.bench.peers import PEERS as OWN

FRAMEWORKS: Final = ("FastStream", "Taskiq", "Dramatiq")
PEERS: Final = {
    **OWN,
    "litequeue": "benchmarks.queue_libraries:LiteQueuePeer",
    "persist-queue": "benchmarks.queue_libraries:PersistQueuePeer",
    "redis-py asyncio": "benchmarks.redis_py:RedisPyAsyncio",
    "aiokafka": "benchmarks.kafka_libraries:AioKafka",
    "FastStream Kafka": "benchmarks.kafka_libraries:FastStreamKafka",
    "FastStream": "benchmarks.frameworks:FastStreamRedis",
    "Taskiq": "benchmarks.frameworks:TaskiqRedis",
    "Dramatiq": "benchmarks.frameworks:DramatiqRedis",
}
PACKAGES: Final = (
    "litequeue",
    "persist-queue",
    "redis",
    "confluent-kafka",
    "aiokafka",
    "faststream",
    "taskiq-redis",
    "dramatiq",
)
