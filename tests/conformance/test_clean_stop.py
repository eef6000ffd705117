"""Promise 12: a clean stop loses nothing and repeats nothing that was finished; after a kill little comes again."""

from hivewire.testing.conformance.clean_stop import *  # noqa: F403
