"""Promise 8: nothing is dropped in silence: not when full, not when too old, not when agents fill each other."""

from hivewire.testing.conformance.bounds import *  # noqa: F403
