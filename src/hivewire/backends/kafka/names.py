"""What topics are called, and which partition a key has."""

from __future__ import annotations

from hashlib import sha256
from typing import Final
from zlib import crc32

REPLY_PREFIX: Final = "~reply/"
GROUP_PREFIX: Final = "~group/"
_MOST_NAME: Final = 249


class Names:
    """The topics of one installation. Those of its own begin with `<prefix>.`, which no agent's does."""

    def __init__(self, prefix: str) -> None:
        self.prefix = prefix
        self.catalogue = f"{prefix}.catalogue"
        self.dead = f"{prefix}.dead"
        self.delayed = f"{prefix}.delayed"
        self.replies = f"{prefix}.replies"
        self.volatile = f"{prefix}.volatile"
        self.claims = f"{prefix}.claims"
        self.given_up = f"dlq.{prefix}"
        """Brokers give dead letters of share groups only to topics whose names begin so."""

    def topic(self, queue: str) -> str:
        """`<prefix>-<agent>`, and `<prefix>-broadcast-<group>`, as in the reference."""
        if queue.startswith(REPLY_PREFIX):
            return self.replies
        name = queue
        if queue.startswith(GROUP_PREFIX):
            name = f"broadcast-{queue[len(GROUP_PREFIX) :]}"
        plain = f"{self.prefix}-{name}"
        # To Kafka `a.b` and `a_b` are one name: of these two only the second is left as it is.
        if "." not in name and len(plain) <= _MOST_NAME:
            return plain
        readable = name.replace(".", "-").replace("_", "-")[:100]
        return f"{self.prefix}.queue-{readable}-{sha256(name.encode()).hexdigest()[:16]}"

    def share_group(self, group: str, queue: str) -> str:
        """Of one queue: a share group has one limit of deliveries for all that it reads."""
        return f"{group}.share.{self.topic(queue)}"


def key_bytes(key: str) -> bytes:
    try:
        return key.encode()
    except UnicodeEncodeError:  # half a character: to ask for it each time takes three times as long
        return key.encode("utf-8", "surrogatepass")


def text_of(packed: bytes) -> str:
    """The other way."""
    try:
        return packed.decode()
    except UnicodeDecodeError:
        return packed.decode("utf-8", "surrogatepass")


def partition_of(key: bytes, partitions: int) -> int:
    """As librdkafka's own partitioner chooses."""
    return crc32(key) % partitions
