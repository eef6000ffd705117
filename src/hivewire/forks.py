"""Whether this process was forked since: what was opened before belongs to its parent."""

from __future__ import annotations

import os


class _Forks:
    """How often this process was forked from another one since this was imported: cheaper to ask than its id."""

    def __init__(self) -> None:
        self.count = 0
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=self._forked)

    def _forked(self) -> None:
        self.count += 1


forks = _Forks()
