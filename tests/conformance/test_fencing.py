"""Promise 4: who was away for longer than its lease can settle nothing any more."""

from hivewire.testing.conformance.fencing import *  # noqa: F403
