"""What became of an ordered queue's records: stored in one step, whatever shards they are of."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Final

from hivewire.backend import Again, Dead, Fetched, Unfinished
from hivewire.backends.redis.fragments import CLOCK, INTER, NEEDED, PAST
from hivewire.backends.redis.packing import life_of, pack_dead, pack_settled, pack_state
from hivewire.backends.redis.reading import Held, entry_id

# ARGV: me, most lives kept of a shard, ms that those are kept which could expire; then of each shard: shard, token,
# chunk of lives, how many; the numbers of: ids to remove, ids whose state goes, (id, state) to keep, dead (id, id of
# the message, letter), (id, life) of what had a time to live; then these. The shards that the fence refused.
SETTLE: Final = (
    CLOCK
    + NEEDED
    + INTER
    + PAST
    + """
-- What is stored in one hash is asked and told once for all shards: each call costs a script more than what it does.
local parts, owners, counters, at, could_expire = {}, {}, {}, 4, false
while at <= #ARGV do
  local part = {
    at = at + 9, shard = ARGV[at], token = ARGV[at + 1], chunk = ARGV[at + 2], gone = 0,
    lives = tonumber(ARGV[at + 3]), removed = tonumber(ARGV[at + 4]), dropped = tonumber(ARGV[at + 5]),
    kept = tonumber(ARGV[at + 6]), dead = tonumber(ARGV[at + 7]), timed = tonumber(ARGV[at + 8]),
  }
  parts[#parts + 1] = part
  owners[#owners + 1], owners[#owners + 2] = 'o' .. part.shard, 't' .. part.shard
  counters[#counters + 1], counters[#counters + 2] = 'g' .. part.shard, 'n' .. part.shard
  at = part.at + part.removed + part.dropped + 2 * part.kept + 3 * part.dead + 2 * part.timed
end
owners = redis.call('HMGET', base .. 'o', unpack(owners))
local counts = redis.call('HMGET', base .. 'done', unpack(counters))
local lease = tonumber(redis.call('ZSCORE', base .. 'm', ARGV[1]) or '0')

local function each(count, width, call)
  while count > 0 do
    local some = math.min(count, 500)
    call(at, at + some * width - 1)
    at = at + some * width
    count = count - some
  end
end
local function remove(part)
  local stream, states = base .. 's' .. part.shard, base .. 'st' .. part.shard
  local function delete(from, to) part.gone = part.gone + redis.call('XDEL', stream, unpack(ARGV, from, to)) end
  at = part.at
  each(part.removed, 1, delete)
  each(part.dropped, 1, function(from, to) redis.call('HDEL', states, unpack(ARGV, from, to)) end)
  each(part.kept, 2, function(from, to) redis.call('HSET', states, unpack(ARGV, from, to)) end)
  for _ = 1, part.dead do
    -- A settlement that is repeated after its answer was lost must not bury twice.
    if redis.call('XDEL', stream, ARGV[at]) == 1 then
      inter(ARGV[at + 1], ARGV[at + 2])
      part.gone = part.gone + 1
    end
    redis.call('HDEL', states, ARGV[at])
    at = at + 3
  end
  for i = at, at + 2 * part.timed - 1, 2 do
    redis.call('ZREM', base .. 'ttl', part.shard .. ':' .. ARGV[i])
    redis.call('ZADD', base .. 'past', now, ARGV[i + 1])
    could_expire = true
  end
end
local function remember(part, count)
  local done, sizes = base .. 'done' .. part.shard, base .. 'donen' .. part.shard
  redis.call('RPUSH', done, part.chunk)
  redis.call('RPUSH', sizes, part.lives)
  count = count + part.lives
  while count > tonumber(ARGV[2]) do
    local oldest = tonumber(redis.call('LPOP', sizes) or '0')
    redis.call('LPOP', done)
    if oldest == 0 then break end
    count = count - oldest
  end
  return count
end

local refused, told = {}, {}
for i, part in ipairs(parts) do
  if lease > now and owners[2 * i - 1] == ARGV[1] and owners[2 * i] == part.token then
    remove(part)
    if part.gone > 0 then
      told[#told + 1], told[#told + 2] = 'g' .. part.shard, tonumber(counts[2 * i - 1] or '0') + part.gone
    end
    if part.lives > 0 then
      told[#told + 1], told[#told + 2] = 'n' .. part.shard, remember(part, tonumber(counts[2 * i] or '0'))
    end
  else
    refused[#refused + 1] = tonumber(part.shard)
  end
end
if #told > 0 then redis.call('HSET', base .. 'done', unpack(told)) end
if could_expire then forget_past(ARGV[3], ARGV[2]) end
return refused
"""
)


def arguments(held: Held, done: Sequence[Fetched], rest: Sequence[Unfinished], now: float) -> list[str | bytes | int]:
    """What `SETTLE` is told of one shard. From here on these records count as settled."""
    ids = [entry_id(fetched) for fetched in done]
    records = [fetched.record for fetched in done]
    dropped = [id for id in ids if id in held.stored] if held.stored else []
    timed: list[str | bytes] = []
    for id, record in zip(ids, records, strict=True):
        if record.ttl_s is not None:
            timed += [id, life_of(record)]
    held.forget(ids)
    states: list[str | bytes] = []
    letters: list[str | bytes] = []
    for outcome in rest:
        id = entry_id(outcome.fetched)
        if isinstance(outcome, Dead):
            record = outcome.fetched.record
            letters += [id, record.id, pack_dead(record, outcome.letter)]
            records.append(record)
            held.forget((id,))
            if record.ttl_s is not None:
                timed += [id, life_of(record)]
        else:
            states += _waiting(held, outcome, id, now)
    chunk = pack_settled(now, records) if records else b""
    counts = len(ids), len(dropped), len(states) // 2, len(letters) // 3, len(timed) // 2
    return [held.shard, held.token, chunk, len(records), *counts, *ids, *dropped, *states, *letters, *timed]


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
