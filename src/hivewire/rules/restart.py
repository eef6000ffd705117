"""When a worker process that ended is started again."""

from __future__ import annotations

import msgspec


class CrashLoop(msgspec.Struct, kw_only=True):
    """One process that is started again and again: the pause doubles while it crashes at once.

    The first crash after a healthy time costs `first_s`; each further one that came before the process
    had run for `healthy_s` doubles the pause, up to `most_s`.

    >>> loop = CrashLoop(first_s=1, most_s=60, healthy_s=10)
    >>> [loop.pause_s(ran_s=0.1) for _ in range(3)]
    [1.0, 2.0, 4.0]
    >>> loop.pause_s(ran_s=10)
    1.0
    """

    first_s: float = 0.25
    most_s: float = 30.0
    healthy_s: float = 10.0
    crashes: int = 0
    """Crashes in a row, none of them after a healthy time."""

    def pause_s(self, ran_s: float) -> float:
        """Note that the process ended after `ran_s` and return how long to wait before the next start."""
        self.crashes = 1 if ran_s >= self.healthy_s else self.crashes + 1
        doublings = min(self.crashes - 1, 60)  # 2 ** 60 s is beyond every `most_s`; stops float overflow
        return float(min(self.most_s, self.first_s * 2.0**doublings))
