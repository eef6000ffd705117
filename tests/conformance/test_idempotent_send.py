"""Promise 9: what is sent twice is handled once, as far as the windows reach."""

from hivewire.testing.conformance.idempotent_send import *  # noqa: F403
