"""Promise 10: every member of a group gets a broadcast once, with an acknowledgement of its own."""

from hivewire.testing.conformance.broadcast import *  # noqa: F403
