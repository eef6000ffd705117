"""What is kept, and for how long."""

from hivewire.testing.conformance.retention import *  # noqa: F403
