"""Promise 2: the acknowledgement follows the handler; whatever stops a handler, the message comes again."""

from hivewire.testing.conformance.at_least_once import *  # noqa: F403
