"""What a process remembers of the file: ids settled lately, and packs that were taken in part."""

from __future__ import annotations

from collections import OrderedDict, deque

from hivewire.backend import Record
from hivewire.backends.sqlite.storing import unpack
from hivewire.backends.sqlite.transaction import Life, Queue, Transaction, blocks_in

_SETTLED_SINCE = "SELECT ids FROM settled WHERE queue = ? AND block > ? ORDER BY block"
_MOST_PACKS = 32
_NO_LIVES: set[Life] = set()
"""Never written to."""


class Settled:
    """The lives of one queue's records that ended within the window. The file has them in blocks, one a
    transaction; a process reads each block once, so a look-up costs no statement."""

    __slots__ = ("_blocks", "_lives", "_queue", "_read_to", "_window_ids", "_window_s")

    def __init__(self, queue: int, window_ids: int, window_s: float) -> None:
        self._queue = queue
        self._window_ids = window_ids
        self._window_s = window_s
        self._read_to = 0
        self._lives: set[Life] = _NO_LIVES
        self._blocks: deque[tuple[float, tuple[Life, ...]]] | tuple[()] = ()
        """Tuples of texts, which the garbage collector looks at once and never again."""

    def refresh(self, transaction: Transaction, queue: Queue) -> set[Life]:
        """All lives that ended in committed transactions."""
        if queue.blocks != self._read_to:
            for (ids,) in transaction.db.execute(_SETTLED_SINCE, (self._queue, self._read_to)):
                self._add_all(ids)
            self._add_all(queue.recent)
        self._forget(transaction.now - self._window_s)
        return self._lives

    def note(self, block: int, at: float, lives: list[Life]) -> None:
        """This process has committed this block."""
        if block == self._read_to + 1:
            self._add(block, at, lives)

    def _add_all(self, data: bytes) -> None:
        for block, at, lives in blocks_in(data):
            if block > self._read_to:
                self._add(block, at, lives)

    def _add(self, block: int, at: float, lives: list[Life]) -> None:
        if isinstance(self._blocks, tuple):  # most of many queues have settled nothing
            self._lives, self._blocks = set(), deque()
        self._lives.update(lives)
        self._blocks.append((at, tuple(lives)))
        self._read_to = block

    def _forget(self, horizon: float) -> None:
        blocks = self._blocks
        if isinstance(blocks, tuple):
            return
        while blocks and (blocks[0][0] < horizon or len(self._lives) - len(blocks[0][1]) >= self._window_ids):
            self._lives.difference_update(blocks.popleft()[1])


class Packs:
    """Packs never change, and the id of a lane is never used again: what was read of one stays true."""

    def __init__(self) -> None:
        self._records: OrderedDict[tuple[int, int], list[Record]] = OrderedDict()

    def records(self, lane: int, first: int, data: bytes | list[Record]) -> list[Record]:
        if isinstance(data, list):
            return data
        return self._records.pop((lane, first), None) or unpack(data)

    def keep(self, lane: int, first: int, records: list[Record]) -> None:
        self._records[lane, first] = records
        if len(self._records) > _MOST_PACKS:
            self._records.popitem(last=False)

    def forget(self) -> None:
        self._records.clear()
