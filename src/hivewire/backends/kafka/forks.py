"""How often this process was forked off: to ask for its id each time is dear."""

from __future__ import annotations

import os


class _Forks:
    count = 0

    def forked(self) -> None:
        self.count += 1


forks = _Forks()
os.register_at_fork(after_in_child=forks.forked)
