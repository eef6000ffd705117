"""Promise 6: failed attempts come again later and later, and delay no other key."""

from hivewire.testing.conformance.retry import *  # noqa: F403
