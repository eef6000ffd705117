"""Messages as bytes: the reference's JSON. And what may name what."""

from hivewire.codec.kept import Kept, keep
from hivewire.codec.names import ADDRESSES, check_agent, check_group, check_type, split_address
from hivewire.codec.values import MAX_DEPTH, shown
from hivewire.codec.wire import decode, encode

__all__ = [
    "ADDRESSES",
    "MAX_DEPTH",
    "Kept",
    "check_agent",
    "check_group",
    "check_type",
    "decode",
    "encode",
    "keep",
    "shown",
    "split_address",
]
