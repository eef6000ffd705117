"""Competing queues: any idle worker takes the next message, whatever its key."""

from hivewire.testing.conformance.competing import *  # noqa: F403
