"""What became of an ordered queue's records: stored in one step, whatever shards they are of."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Final

from hivewire.backend import Again, Dead, Fetched, Unfinished
from hivewire.backends.redis.fragments import ALIVE, CLOCK, INTER, NEEDED
from hivewire.backends.redis.packing import pack_dead, pack_settled, pack_state
from hivewire.backends.redis.reading import Held, entry_id

# ARGV: me, most lives kept of a shard; then of each shard: shard, token, chunk of lives, how many; the numbers of: ids
# to remove, ids whose state goes, (id, state) to keep, dead (id, id of the message, letter), ids that had a time to
# live; then these. The shards that the fence refused.
SETTLE: Final = (
    CLOCK
    + NEEDED
    + ALIVE
    + INTER
    + """
local at, refused, shard = 3, {}, ''
local function each(count, width, call)
  while count > 0 do
    local some = math.min(count, 500)
    call(at, at + some * width - 1)
    at = at + some * width
    count = count - some
  end
end
local function remember(chunk, lives)
  local done, sizes = base .. 'done' .. shard, base .. 'donen' .. shard
  redis.call('RPUSH', done, chunk)
  redis.call('RPUSH', sizes, lives)
  local count = redis.call('HINCRBY', base .. 'done', 'n' .. shard, lives)
  while count > tonumber(ARGV[2]) do
    local oldest = tonumber(redis.call('LPOP', sizes) or '0')
    redis.call('LPOP', done)
    if oldest == 0 then break end
    count = redis.call('HINCRBY', base .. 'done', 'n' .. shard, -oldest)
  end
end
local function settle(lives, removed, dropped, kept, dead, timed)
  local stream, states, gone = base .. 's' .. shard, base .. 'st' .. shard, 0
  each(removed, 1, function(from, to) gone = gone + redis.call('XDEL', stream, unpack(ARGV, from, to)) end)
  each(dropped, 1, function(from, to) redis.call('HDEL', states, unpack(ARGV, from, to)) end)
  each(kept, 2, function(from, to) redis.call('HSET', states, unpack(ARGV, from, to)) end)
  for _ = 1, dead do
    -- A settlement that is repeated after its answer was lost must not bury twice.
    if redis.call('XDEL', stream, ARGV[at]) == 1 then
      inter(ARGV[at + 1], ARGV[at + 2])
      gone = gone + 1
    end
    redis.call('HDEL', states, ARGV[at])
    at = at + 3
  end
  if gone > 0 then redis.call('HINCRBY', base .. 'done', 'g' .. shard, gone) end
  each(timed, 1, function(from, to)
    for i = from, to do redis.call('ZREM', base .. 'ttl', shard .. ':' .. ARGV[i]) end
  end)
end
while at <= #ARGV do
  shard = ARGV[at]
  local token, chunk, lives = ARGV[at + 1], ARGV[at + 2], tonumber(ARGV[at + 3])
  local removed, dropped, kept = tonumber(ARGV[at + 4]), tonumber(ARGV[at + 5]), tonumber(ARGV[at + 6])
  local dead, timed = tonumber(ARGV[at + 7]), tonumber(ARGV[at + 8])
  at = at + 9
  if owns(ARGV[1], shard, token) then
    settle(lives, removed, dropped, kept, dead, timed)
    if lives > 0 then remember(chunk, lives) end
  else
    refused[#refused + 1] = tonumber(shard)
    at = at + removed + dropped + 2 * kept + 3 * dead + timed
  end
end
return refused
"""
)


def arguments(held: Held, done: Sequence[Fetched], rest: Sequence[Unfinished], now: float) -> list[str | bytes | int]:
    """What `SETTLE` is told of one shard. From here on these records count as settled."""
    ids = [entry_id(fetched) for fetched in done]
    dropped = [id for id in ids if id in held.stored] if held.stored else []
    timed = [id for id, fetched in zip(ids, done, strict=True) if fetched.record.ttl_s is not None]
    held.forget(ids)
    states: list[str | bytes] = []
    letters: list[str | bytes] = []
    for outcome in rest:
        id = entry_id(outcome.fetched)
        if isinstance(outcome, Dead):
            record = outcome.fetched.record
            letters += [id, record.id, pack_dead(record, outcome.letter)]
            held.forget((id,))
            if record.ttl_s is not None:
                timed.append(id)
        else:
            states += _waiting(held, outcome, id, now)
    lives = [fetched.record for fetched in gone(done, rest)] if rest else [fetched.record for fetched in done]
    chunk = pack_settled(now, lives) if lives else b""
    counts = len(ids), len(dropped), len(states) // 2, len(letters) // 3, len(timed)
    return [held.shard, held.token, chunk, len(lives), *counts, *ids, *dropped, *states, *letters, *timed]


def _waiting(held: Held, outcome: Unfinished, id: bytes, now: float) -> list[str | bytes]:
    """It is not settled: its counters, if it has any."""
    fetched = outcome.fetched
    due_ms = int((now + outcome.delay_s) * 1000) if isinstance(outcome, Again) and outcome.delay_s > 0 else 0
    held.waiting(id)
    if not (due_ms or fetched.starts or fetched.failures or fetched.crashes or id in held.stored):
        return []
    held.stored.add(id)
    return [id, pack_state(fetched, running=False, due_ms=due_ms)]


def by_tenure(
    done: Sequence[Fetched], rest: Sequence[Unfinished]
) -> Collection[tuple[list[Fetched], list[Unfinished]]]:
    """Outcomes of one shard and one ownership together, each kind in its order."""
    if len(done) == 1 and not rest:
        return ((list(done), []),)
    parts: dict[tuple[int, int], tuple[list[Fetched], list[Unfinished]]] = {}
    shard = token = -1
    finished: list[Fetched] = []
    for fetched in done:
        if fetched.shard != shard or fetched.token != token:
            shard, token = fetched.shard, fetched.token
            finished = parts.setdefault((shard, token), ([], []))[0]
        finished.append(fetched)
    for outcome in rest:
        parts.setdefault((outcome.fetched.shard, outcome.fetched.token), ([], []))[1].append(outcome)
    return parts.values()


def gone(done: Sequence[Fetched], rest: Sequence[Unfinished]) -> list[Fetched]:
    """Those that are in the stream no more."""
    return [*done, *(outcome.fetched for outcome in rest if isinstance(outcome, Dead))]
