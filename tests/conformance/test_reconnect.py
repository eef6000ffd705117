"""Promise 13: the same object outlives an outage of its store; health and counters tell the truth."""

from hivewire.testing.conformance.reconnect import *  # noqa: F403
