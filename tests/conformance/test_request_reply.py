"""Promise 11: the reply reaches the caller, or the caller gets `TimedOut`; a late reply is counted."""

from hivewire.testing.conformance.request_reply import *  # noqa: F403
