"""What a member of a pool has finished, as the log has it: who missed the answer and says it again is not refused."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from hivewire.rules.words import At, Heard, Word

MOST: Final = 10_000
"""Of the newest."""


class Finished:
    """A word whose answer was lost may stand in the log. When it is said again, the log refuses it: its messages are
    nobody's by then. The member, who reads the log as all do, knows better.

    >>> finished = Finished()
    >>> finished.heard(Word("me", done=[(0, 1), (0, 2)]), Heard(refused=[(0, 2)]))
    >>> finished.heard(Word("me", done=[(0, 1), (0, 2)]), Heard(refused=[(0, 1), (0, 2)]))
    >>> sorted(finished.still([(0, 1), (0, 2)]))
    [(0, 2)]
    """

    __slots__ = ("_lately", "_topic")

    def __init__(self) -> None:
        self._lately: dict[At, None] = {}
        self._topic = ""

    def heard(self, word: Word, heard: Heard) -> None:
        """One of the member's own words, in the order of the log, and what came of it."""
        if word.topic and word.topic != self._topic:
            self._lately.clear()  # positions are other messages' by now
            self._topic = word.topic
        if word.done:
            self._lately.update(dict.fromkeys(self.still(word.done) - set(heard.refused)))
            while len(self._lately) > MOST:
                del self._lately[next(iter(self._lately))]

    def still(self, ats: Iterable[At]) -> set[At]:
        """Those that are not finished by a word of this member, as far as it remembers."""
        return {at for at in ats if at not in self._lately}
