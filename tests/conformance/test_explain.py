"""The life of a message as it is told."""

from hivewire.testing.conformance.explain import *  # noqa: F403
