"""What the server does in one step. Each script's only key is the base name of a queue; all it touches is under
that queue's hash tag. One that touches a single key names that.

Of one queue: `spec` its declaration; `s0`, `s1` … a stream for each shard; `st0` … the counters of those
records that have any, as `starts,failures,crashes,running,died,due`; `done0` … lives settled lately, in chunks;
`past` those of them that could expire; `m` members by the end of their lease, `a` those of them that take; `o`
owners, fencing tokens and how far a dead owner may have read; `late` delayed messages; `ttl` when messages
expire; `dead`, `deadz`, `deadid` dead letters. What competing queues have beside: see `competing`.
"""

from __future__ import annotations

from hashlib import sha1
from typing import Final

from hivewire.backends.redis import competing
from hivewire.backends.redis.address import Command
from hivewire.backends.redis.delayed import LATE as LATE
from hivewire.backends.redis.delayed import WITHDRAW as WITHDRAW
from hivewire.backends.redis.fragments import ALIVE, CLOCK, DECLARE_IT, INTER, NEEDED, PAST, SHARD_OF
from hivewire.backends.redis.intake import INLET_BEGIN as INLET_BEGIN
from hivewire.backends.redis.intake import INLET_READ as INLET_READ
from hivewire.backends.redis.intake import INLET_SEAT as INLET_SEAT
from hivewire.backends.redis.intake import INLET_STORE as INLET_STORE
from hivewire.backends.redis.membership import BEAT, LEAVE, RELEASE, RENEW
from hivewire.backends.redis.settlement import SETTLE as SETTLE

DECLARE: Final = (
    CLOCK
    + DECLARE_IT
    + """
local shards, cap, mode = declare(ARGV[1], ARGV[2], ARGV[3])
return {shards, cap, mode}
"""
)

# ARGV: room, delay ms, window ms of the idempotency key, the key, shards, cap, is a reply, first id;
# then of each record: hash of its key, its level, head, body, time to live in ms or 0.
APPEND: Final = (
    CLOCK
    + DECLARE_IT
    + SHARD_OF
    + """
if ARGV[7] == '1' then
  if redis.call('EXISTS', base .. 'spec') == 0 then return {'missing'} end
  local last = redis.call('ZREVRANGE', base .. 'm', 0, 0, 'WITHSCORES')
  if last[2] and tonumber(last[2]) + 60000 < now then return {'missing'} end
end
local shards, cap, mode = declare(ARGV[5], ARGV[6], '')
local idem = base .. 'idem:' .. ARGV[4]
if ARGV[3] ~= '0' then
  local first = redis.call('GET', idem)
  if first then return {'duplicate', first} end
end
local held = redis.call('ZCARD', base .. 'late')
for shard = 0, shards - 1 do held = held + redis.call('XLEN', base .. 's' .. shard) end
local count = (#ARGV - 8) / 5
local limit = cap
if ARGV[1] == '1' then limit = cap + math.max(100, math.floor(cap / 10)) end
local room = math.max(0, limit - held)
if ARGV[1] == '2' or room > count then room = count end
if room == 0 and count > 0 then return {'stored', shards, cap, mode, held, 0} end
if ARGV[3] ~= '0' then redis.call('SET', idem, ARGV[8], 'PX', ARGV[3]) end
local rung = {}
for i = 9, 8 + room * 5, 5 do
  local shard = shard_of(mode, shards, ARGV[i], ARGV[i + 1])
  if ARGV[2] ~= '0' then
    local number = string.format('%016d', redis.call('HINCRBY', base .. 'spec', 'late', 1))
    local entry = cmsgpack.pack({shard, string.format('%.0f', now), ARGV[i + 2], ARGV[i + 3], ARGV[i + 4]})
    redis.call('ZADD', base .. 'late', now + ARGV[2], number .. entry)
  else
    local id = redis.call('XADD', base .. 's' .. shard, '*', 'h', ARGV[i + 2], 'b', ARGV[i + 3])
    if ARGV[i + 4] ~= '0' then redis.call('ZADD', base .. 'ttl', now + ARGV[i + 4], shard .. ':' .. id) end
    rung[shard] = true
  end
end
local said = {}
for shard in pairs(rung) do said[#said + 1] = shard end
if ARGV[2] ~= '0' then redis.call('PUBLISH', base .. 'news', '*')
else redis.call('PUBLISH', base .. 'bell', table.concat(said, ',')) end
return {'stored', shards, cap, mode, held + room, room}
"""
)

# What the queue was declared with, and how many it holds; nothing when it is not there.
ROOM: Final = """
local base = KEYS[1]
local spec = redis.call('HMGET', base .. 'spec', 'shards', 'cap', 'mode')
if not spec[1] then return {} end
local held = redis.call('ZCARD', base .. 'late')
for shard = 0, spec[1] - 1 do held = held + redis.call('XLEN', base .. 's' .. shard) end
return {tonumber(spec[1]), tonumber(spec[2]), spec[3], held}
"""

# ARGV: most. Turns delayed messages that are due into plain ones, and rings for attempts that are due in a competing
# queue; when the next of either is due, or -1.
MOVE: Final = (
    CLOCK
    + NEEDED
    + """
local late = base .. 'late'
local due = redis.call('ZRANGEBYSCORE', late, '-inf', now, 'LIMIT', 0, ARGV[1])
local said = {}
for _, member in ipairs(due) do
  local entry = cmsgpack.unpack(string.sub(member, 17))
  local id = redis.call('XADD', base .. 's' .. entry[1], '*', 'h', entry[3], 'b', entry[4], 't', entry[2])
  if entry[5] ~= '0' then redis.call('ZADD', base .. 'ttl', entry[2] + entry[5], entry[1] .. ':' .. id) end
  redis.call('ZREM', late, member)
  said[#said + 1] = entry[1]
end
if redis.call('ZCOUNT', base .. 'w', '-inf', now) > 0 then said[#said + 1] = 'w' end
if #said > 0 then redis.call('PUBLISH', base .. 'bell', table.concat(said, ',')) end
local next = redis.call('ZRANGE', late, 0, 0, 'WITHSCORES')
local again = redis.call('ZRANGEBYSCORE', base .. 'w', '(' .. now, '+inf', 'WITHSCORES', 'LIMIT', 0, 1)
local soonest = math.min(tonumber(next[2]) or math.huge, tonumber(again[2]) or math.huge)
return soonest < math.huge and math.max(0, soonest - now) or -1
"""
)

# ARGV: me, shard, token, then id and state of each. 0: refused by the fence.
START: Final = (
    CLOCK
    + NEEDED
    + ALIVE
    + """
if not owns(ARGV[1], ARGV[2], ARGV[3]) then return 0 end
for i = 4, #ARGV, 2 do redis.call('HSET', base .. 'st' .. ARGV[2], ARGV[i], ARGV[i + 1]) end
return 1
"""
)

DEPTH: Final = (
    CLOCK
    + competing.NAMES
    + """
local spec = redis.call('HMGET', base .. 'spec', 'shards', 'mode')
local shards, late = tonumber(spec[1] or '0'), base .. 'late'
local scheduled = redis.call('ZCOUNT', late, '(' .. now, '+inf')
local held = redis.call('ZCARD', late) - scheduled
local runs, waits, oldest = 0, 0, now
for shard = 0, shards - 1 do
  held = held + redis.call('XLEN', base .. 's' .. shard)
  for _, state in ipairs(redis.call('HVALS', base .. 'st' .. shard)) do
    local running, due = string.match(state, '^%d+,%d+,%d+,(%d),%d+,(%d+)$')
    if running == '1' then runs = runs + 1
    elseif tonumber(due) > now then waits = waits + 1 end
  end
  local first = redis.call('XRANGE', base .. 's' .. shard, '-', '+', 'COUNT', 1)
  if first[1] then oldest = math.min(oldest, tonumber(first[1][2][6] or string.match(first[1][1], '^%d+'))) end
end
if spec[2] == 'competing' and redis.call('EXISTS', base .. 'k') == 1 then
  runs = -redis.call('ZCARD', base .. 'w')
  waits = redis.call('ZCOUNT', base .. 'w', '(' .. now, '+inf')
  for shard = 0, shards - 1 do
    local pending = redis.pcall('XPENDING', base .. 's' .. shard, GROUP)
    if not pending.err then runs = runs + pending[1] end
  end
end
return {held, runs, waits, scheduled, redis.call('HLEN', base .. 'dead'), now - oldest}
"""
)

# ARGV: shards, cap; of each letter its cursor, hash of key, level, id, new head, body, time to live.
REVIVE: Final = (
    CLOCK
    + DECLARE_IT
    + SHARD_OF
    + """
local shards, _, mode = declare(ARGV[1], ARGV[2], '')
local revived, said = 0, {}
for i = 3, #ARGV, 7 do
  if redis.call('HDEL', base .. 'dead', ARGV[i]) == 1 then
    redis.call('ZREM', base .. 'deadz', ARGV[i])
    redis.call('ZREM', base .. 'deadid', ARGV[i + 3] .. '\\0' .. ARGV[i])
    local shard = shard_of(mode, shards, ARGV[i + 1], ARGV[i + 2])
    local id = redis.call('XADD', base .. 's' .. shard, '*', 'h', ARGV[i + 4], 'b', ARGV[i + 5])
    if ARGV[i + 6] ~= '0' then redis.call('ZADD', base .. 'ttl', now + ARGV[i + 6], shard .. ':' .. id) end
    said[#said + 1] = shard
    revived = revived + 1
  end
end
if revived > 0 then redis.call('PUBLISH', base .. 'bell', table.concat(said, ',')) end
return revived
"""
)

# What is missing: found now, in all, when. Of each stream `g` counts what was removed on purpose, `a` what had been
# added when last looked: a stream that has less was deleted as a whole.
GAPS: Final = (
    CLOCK
    + """
local spec, book = base .. 'spec', base .. 'done'
local shards, newly = tonumber(redis.call('HGET', spec, 'shards') or '0'), 0
for shard = 0, shards - 1 do
  local length, added = 0, 0
  local told = redis.pcall('XINFO', 'STREAM', base .. 's' .. shard)
  for i = 1, told.err and 0 or #told, 2 do
    if told[i] == 'length' then length = told[i + 1] elseif told[i] == 'entries-added' then added = told[i + 1] end
  end
  local counted = redis.call('HMGET', book, 'g' .. shard, 'a' .. shard)
  local gone, before = tonumber(counted[1] or '0'), tonumber(counted[2] or '0')
  if redis.call('HEXISTS', spec, 'counts') == 0 then gone = added - length end
  local missing = added - length - gone
  if added < before or missing < 0 then
    missing = math.max(0, before - gone)
    redis.call('HSET', book, 'g' .. shard, added - length)
  elseif missing > 0 or not counted[1] then
    redis.call('HSET', book, 'g' .. shard, gone + missing)
  end
  redis.call('HSET', book, 'a' .. shard, added)
  newly = newly + missing
end
if shards > 0 then redis.call('HSET', spec, 'counts', 1) end
if newly > 0 then
  redis.call('HINCRBY', spec, 'lost', newly)
  redis.call('HSET', spec, 'lost_at', now)
end
local lost = redis.call('HMGET', spec, 'lost', 'lost_at')
return {newly, tonumber(lost[1] or '0'), lost[2] or '0'}
"""
)

# ARGV: cursor and id of each letter.
PURGE: Final = """
local base, purged = KEYS[1], 0
for i = 1, #ARGV, 2 do
  purged = purged + redis.call('HDEL', base .. 'dead', ARGV[i])
  redis.call('ZREM', base .. 'deadz', ARGV[i])
  redis.call('ZREM', base .. 'deadid', ARGV[i + 1] .. '\\0' .. ARGV[i])
end
return purged
"""

# ARGV: 1 to do it only when no member is left.
DROP: Final = (
    CLOCK
    + """
if ARGV[1] == '1' then
  local last = redis.call('ZREVRANGE', base .. 'm', 0, 0, 'WITHSCORES')
  if last[2] and tonumber(last[2]) > now then return 0 end
end
local shards = tonumber(redis.call('HGET', base .. 'spec', 'shards') or '0')
for shard = 0, shards - 1 do
  redis.call('DEL', base .. 's' .. shard, base .. 'st' .. shard, base .. 'done' .. shard, base .. 'donen' .. shard)
end
for _, name in ipairs({'spec', 'm', 'a', 'o', 'done', 'late', 'ttl', 'dead', 'deadz', 'deadid',
                      'k', 'w', 'live', 'past', 'x'}) do
  redis.call('DEL', base .. name)
end
return 1
"""
)

# Of the catalogue. ARGV: key, value, version, ttl ms or 0, counts for the epoch.
PUT: Final = (
    CLOCK
    + """
local values, epoch, note, notes = base .. 'values', base .. 'epoch', base .. 'note:' .. ARGV[1], base .. 'notes'
local kept = ARGV[4] ~= '0' and redis.call('GET', note) or redis.call('HGET', values, ARGV[1])
local version = kept and string.match(kept, '^(%d+) ') or '0'
if version ~= ARGV[3] then return 0 end
local next = redis.call('HINCRBY', epoch, 'versions', 1)
local entry = next .. ' ' .. ARGV[2]
if ARGV[4] ~= '0' then
  redis.call('SET', note, entry, 'PX', ARGV[4])
  redis.call('ZREMRANGEBYSCORE', notes, '-inf', now)
  redis.call('ZADD', notes, now + ARGV[4], ARGV[1])
else redis.call('HSET', values, ARGV[1], entry) end
if ARGV[5] == '1' then redis.call('HSET', epoch, 'epoch', next) end
return next
"""
)

# ARGV: ms that lives are kept, how many are; of each expired record: shard, owner it may have or nothing, token, its id
# in the stream, its own id, letter, its life. How many letters: what was sent twice has one end.
BURY: Final = (
    CLOCK
    + INTER
    + PAST
    + competing.NAMES
    + """
local buried = 0
local function is_a_second(life, place)
  if redis.call('ZSCORE', base .. 'past', life) then return true end
  local other = redis.call('HGET', base .. 'live', life)
  if not other or other == place then return false end
  local shard, id = string.match(other, '^(%d+):(.+)$')
  return redis.call('XRANGE', base .. 's' .. shard, id, id)[1] ~= nil
end
local competing = redis.call('HGET', base .. 'spec', 'mode') == 'competing'
for i = 3, #ARGV, 7 do
  local shard, at, life = ARGV[i], ARGV[i + 3], ARGV[i + 6]
  local found = redis.call('HMGET', base .. 'o', 'o' .. shard, 't' .. shard)
  local owner = found[1] or ''
  local free = owner == '' or tonumber(redis.call('ZSCORE', base .. 'm', owner) or '0') <= now
  if free and competing then
    local pending = redis.pcall('XPENDING', base .. 's' .. shard, GROUP, at, at, 1)
    free = pending.err or not pending[1] or pending[1][2] == FREE
  end
  if free or (owner == ARGV[i + 1] and found[2] == ARGV[i + 2]) then
    local state = redis.call('HGET', base .. 'st' .. shard, at)
    if not (state and string.match(state, '^%d+,%d+,%d+,1,')) then
      if redis.call('XDEL', base .. 's' .. shard, at) == 1 then
        if not is_a_second(life, shard .. ':' .. at) then
          inter(ARGV[i + 4], ARGV[i + 5])
          redis.call('ZADD', base .. 'past', now, life)
          buried = buried + 1
        end
        redis.call('HINCRBY', base .. 'done', 'g' .. shard, 1)
      end
      if competing then
        redis.pcall('XACK', base .. 's' .. shard, GROUP, at)
        redis.call('ZREM', base .. 'w', shard .. ':' .. at)
        if redis.call('HGET', base .. 'live', life) == shard .. ':' .. at then
          redis.call('HDEL', base .. 'live', life)
        end
      end
      redis.call('HDEL', base .. 'st' .. shard, at)
      redis.call('ZREM', base .. 'ttl', shard .. ':' .. at)
    end
  end
end
forget_past(ARGV[1], ARGV[2])
return buried
"""
)

ALL: Final = (
    *(
        BURY,
        DECLARE,
        APPEND,
        ROOM,
        MOVE,
        BEAT,
        RENEW,
        RELEASE,
        LEAVE,
        START,
        SETTLE,
        DEPTH,
        GAPS,
        REVIVE,
        PURGE,
        DROP,
        PUT,
    ),
    *(
        competing.BEAT,
        competing.LEAVE,
        competing.TAKE,
        competing.START,
        competing.SETTLE,
        competing.MINE,
        competing.MEND,
    ),
    *(LATE, WITHDRAW),
    *(INLET_BEGIN, INLET_SEAT, INLET_READ, INLET_STORE),
)
_HASHES: Final = {script: sha1(script.encode(), usedforsecurity=False).hexdigest() for script in ALL}


def load() -> list[Command]:
    """Make the server know them; said on each new connection."""
    return [("SCRIPT", "LOAD", script) for script in ALL]


def run(script: str, base: str, *arguments: str | bytes | int | float) -> Command:
    """The command that runs a script on one queue."""
    return ("EVALSHA", _HASHES[script], 1, base, *arguments)


def run_on(script: str, keys: tuple[str, ...], *arguments: str | bytes | int | float) -> Command:
    return ("EVALSHA", _HASHES[script], len(keys), *keys, *arguments)
