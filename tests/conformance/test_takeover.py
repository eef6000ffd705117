"""Promise 3: a dead member's work is with another one within lease + 2 s; a long handler keeps its own."""

from hivewire.testing.conformance.takeover import *  # noqa: F403
