"""Effects that happen once."""

from hivewire.testing.conformance.effects import *  # noqa: F403
