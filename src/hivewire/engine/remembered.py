"""What one inbox remembers of messages that were settled, so that a second one is known for what it is."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from typing import Final

from hivewire.record import Fetched, life, names
from hivewire.rules.dedup import Keys, Window
from hivewire.settings import Settings

# Never written to, for the many agents in which nothing of the kind has happened yet.
_NO_IDS: Final = Window(1, 0.0)
_NO_KEYS: Final = Keys(1, 0.0)


class Remembered:
    """Ids and idempotency keys of what was settled here, or before the shard came here.

    Invariant: what is in it has an outcome that is stored or about to be; a refused outcome is forgotten.
    """

    __slots__ = ("_ended", "_keys", "_settings", "dying", "here", "may_return", "settled", "twins")

    def __init__(self, settings: Settings, *, here: bool, may_return: bool = True) -> None:
        """`here`: the store does not remember all of it by itself. `may_return`: one can see in the store that it has
        a record again whose end it had confirmed."""
        self.may_return = may_return
        self._settings = settings
        self.here = here
        self.settled = self._window() if here else _NO_IDS
        self._keys = _NO_KEYS
        """Idempotency keys, where the store does not check them."""
        self.twins = _NO_IDS
        """Ids that two records held at one time have."""
        self.dying: dict[Hashable, None] | tuple[()] = ()
        """Names of records whose way to the dead letters is not stored yet."""
        self._ended = _NO_IDS
        """Where those stood that left something else in the store: see `ended`."""

    def _window(self) -> Window:
        return Window(self._settings.dedup_window_ids, self._settings.dedup_window_s)

    def before(self, settled: Iterable[Hashable], now: float) -> None:
        """What was settled of a shard by those who had it before."""
        for one in settled:
            if isinstance(one, tuple) and isinstance(one[1], str):
                self._add_key(one[1], now)
            else:
                self._add_life(one, now)

    def add(self, fetched: Fetched, now: float) -> None:
        """It is settled: what comes with its id or its key from now on is a duplicate."""
        record = fetched.record
        self._add_life(life(record), now)
        if record.dedup_key is not None:
            self._add_key(record.dedup_key, fetched.stored_at)

    def _add_life(self, one: Hashable, now: float) -> None:
        if self.settled is _NO_IDS:
            self.settled = self._window()
        self.settled.add(one, now)

    def _add_key(self, key: str, at: float) -> None:
        if self._keys is _NO_KEYS:
            self._keys = Keys(self._settings.dedup_window_ids, self._settings.idempotency_window_s)
        self._keys.add(key, at)

    def forget(self, fetched: Fetched) -> None:
        """Whoever acknowledged it was told that this was refused, and may undo its work: should it come here again,
        it is no duplicate."""
        self.settled.discard(life(fetched.record))
        if fetched.record.dedup_key is not None:
            self._keys.discard(fetched.record.dedup_key)
        if self._ended:
            self._ended.discard(_place(fetched))

    def knows(self, fetched: Fetched) -> bool:
        """Its life was settled here, or its idempotency key was used within the window."""
        record = fetched.record
        if life(record) in self.settled:
            return True
        return record.dedup_key is not None and self._keys.is_used(record.dedup_key, fetched.stored_at)

    def tidy(self, now: float) -> None:
        """Before each batch, so that the windows stay bounded."""
        if self.settled is not _NO_IDS:
            self.settled.tidy(now)

    def look_for_twins(self, batch: Sequence[Fetched], now: float) -> None:
        """A store that leases keys and remembers what was settled knows all but the records that it hands out
        at one time: a lane is handed out again when those before are settled."""
        ids = [fetched.record.id for fetched in batch]
        if len(set(ids)) < len(ids):
            before: set[str] = set()
            for id in ids:
                if id in before:
                    if self.twins is _NO_IDS:
                        self.twins = self._window()
                    self.twins.add(id, now)
                before.add(id)

    def is_dying(self, fetched: Fetched) -> bool:
        return bool(self.dying) and any(name in self.dying for name in names(fetched.record))

    def dies(self, fetched: Fetched) -> None:
        """It is on its way to the dead letters: see `died`."""
        dying = self.dying = self.dying or {}
        dying.update(dict.fromkeys(names(fetched.record)))

    def died(self, fetched: Fetched, now: float, *, refused: bool) -> None:
        """Only now: refused, it is no dead letter, and should it come here again, no duplicate."""
        if isinstance(self.dying, dict):
            for name in names(fetched.record):
                self.dying.pop(name, None)
        if not refused:
            self.add(fetched, now)
            if self.may_return:
                self.ended(fetched, now)

    def ended(self, fetched: Fetched, now: float) -> None:
        """Its end is stored, and with it a dead letter, or what the engine made of it. A store that has lost its last
        writes has lost these, too, and has the record there again."""
        if self._ended is _NO_IDS:
            self._ended = self._window()
        self._ended.add(_place(fetched), now)

    def has_ended(self, fetched: Fetched) -> bool:
        """This very record, not a second one of its name."""
        return bool(self._ended) and _place(fetched) in self._ended


def _place(fetched: Fetched) -> Hashable:
    return life(fetched.record), fetched.shard, fetched.at
