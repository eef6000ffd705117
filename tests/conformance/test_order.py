"""Order: messages of one key are handled one at a time, in the order sent, whatever happens."""

from hivewire.testing.conformance.order import *  # noqa: F403
