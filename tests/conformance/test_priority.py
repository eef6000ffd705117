"""Priority, with its shares."""

from hivewire.testing.conformance.priority import *  # noqa: F403
