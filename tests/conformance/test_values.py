"""Small values that all processes share."""

from hivewire.testing.conformance.values import *  # noqa: F403
