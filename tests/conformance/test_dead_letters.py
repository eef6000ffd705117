"""Promise 7: what will not be tried again is kept, with its reason and its original bytes."""

from hivewire.testing.conformance.dead_letters import *  # noqa: F403
