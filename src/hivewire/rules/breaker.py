"""When a service that keeps failing is left alone."""

from __future__ import annotations


class Breaker:
    """Closed: calls go through. After `failures` failures in a row it opens: no call for `rest_s` seconds. Then one
    call is let through; its outcome closes the breaker or opens it again. (M. Nygard, "Release It!", 2007.)

    >>> breaker = Breaker(failures=2, rest_s=60.0)
    >>> breaker.failed(now=0), breaker.failed(now=1), breaker.wait_s(now=11)
    (None, None, 50.0)
    """

    def __init__(self, *, failures: int = 5, rest_s: float = 60.0) -> None:
        if failures < 1 or rest_s < 0:
            raise ValueError(f"not a circuit breaker: failures={failures!r}, rest_s={rest_s!r}")
        self._most = failures
        self._rest_s = rest_s
        self._failures = 0
        self._open_until: float | None = None
        self._is_probing = False

    def wait_s(self, now: float) -> float:
        """Seconds until a call may be made; 0: now."""
        if self._open_until is None:
            return 0.0
        if self._is_probing:
            return self._rest_s
        return max(0.0, self._open_until - now)

    def begin(self, now: float) -> bool:
        """A call is to be made: whether it may. What was begun ends with `succeeded`, `failed` or `left`."""
        if self.wait_s(now) > 0:
            return False
        if self._open_until is not None:
            self._is_probing = True
        return True

    def succeeded(self) -> None:
        self._failures = 0
        self._open_until = None
        self._is_probing = False

    def failed(self, now: float) -> None:
        self._failures += 1
        self._is_probing = False
        if self._failures >= self._most:
            self._open_until = now + self._rest_s

    def left(self) -> None:
        """The call ended without telling anything of the service: it was cancelled, or refused for its own fault."""
        self._is_probing = False
