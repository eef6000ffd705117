"""When a failed attempt is tried again."""

from __future__ import annotations

import math
from typing import Final

import msgspec

from hivewire.errors import SettingsError

_LONGEST_S: Final = 1e10
"""Three centuries: without a bound, too, a wait is one that a store can count."""


class Retry(msgspec.Struct, frozen=True, kw_only=True):
    """Exponential back-off with full jitter, as in "Exponential Backoff And Jitter" (AWS Architecture
    Blog, 2015): the wait is uniform between 0 and `first_s` * `factor` ** (failures - 1), at most `most_s`.
    """

    max_attempts: int = 5
    first_s: float = 1.0
    most_s: float = 60.0
    factor: float = 2.0

    def __post_init__(self) -> None:
        if type(self.max_attempts) is not int:
            raise SettingsError(f"not a retry policy: max_attempts is a whole number; got {self.max_attempts!r}")
        for name, least in (("max_attempts", 1), ("first_s", 0), ("most_s", 0), ("factor", 1)):
            value = getattr(self, name)
            is_number = type(value) in (int, float) and least <= value < math.inf
            if not (is_number or (name == "most_s" and value == math.inf)):
                raise SettingsError(f"not a retry policy: {name} is a number, at least {least}; got {value!r}")

    def ceiling_s(self, failures: int) -> float:
        """The longest wait after so many failures (1 = the first).

        >>> Retry(first_s=1, most_s=5).ceiling_s(2)
        2.0
        """
        most_s = min(self.most_s, _LONGEST_S)
        if failures > 60:  # 2 ** 60 s is beyond every `most_s`; stops float overflow
            return most_s
        return float(min(most_s, self.first_s * self.factor ** (failures - 1)))

    def delay_s(self, failures: int, chance: float) -> float:
        """The wait after so many failures; `chance` is in [0, 1)."""
        return self.ceiling_s(failures) * chance
