"""Delivery: each message reaches a handler of its agent, as it was sent, and is acknowledged after."""

from hivewire.testing.conformance.delivery import *  # noqa: F403
