"""Bad input: refused at `send`, or kept with its bytes; never a crash, never a good message lost."""

from hivewire.testing.conformance.bad_input import *  # noqa: F403
