"""What the server does in one step. Each script's only key is the base name of a queue; all it touches is under
that queue's hash tag.

Of one queue: `spec` its declaration; `s0`, `s1` … a stream for each shard; `st0` … the counters of those
records that have any, as `starts,failures,crashes,running,died,due`; `done0` … lives settled lately, in
chunks; `m` members by the end of their lease, `a` those of them that take; `o` owners, fencing tokens and how
far a dead owner may have read; `late` delayed messages; `ttl` when
messages expire; `dead`, `deadz`, `deadid` dead letters.
"""

from __future__ import annotations

from hashlib import sha1
from typing import Final

from hivewire.backends.redis.address import Command

_CLOCK: Final = """
local base = KEYS[1]
local time = redis.call('TIME')
local us = time[1] * 1000000 + time[2]
local now = math.floor(us / 1000)
"""

_DECLARE: Final = """
local function declare(shards, cap, mode)
  local spec = base .. 'spec'
  if redis.call('HSETNX', spec, 'shards', shards) == 1 then
    redis.call('HSET', spec, 'cap', cap, 'mode', mode)
  end
  local found = redis.call('HMGET', spec, 'shards', 'cap', 'mode')
  if found[3] == '' and mode ~= '' then
    redis.call('HSET', spec, 'mode', mode)
    found[3] = mode
  end
  return tonumber(found[1]), tonumber(found[2]), found[3]
end
"""

_ALIVE: Final = """
local function owns(me, shard, token)
  local lease = redis.call('ZSCORE', base .. 'm', me)
  if not lease or tonumber(lease) <= now then return false end
  local found = redis.call('HMGET', base .. 'o', 'o' .. shard, 't' .. shard)
  return found[1] == me and found[2] == token
end
"""

_QUIET: Final = """
local function running(shard)
  local count = 0
  for _, state in ipairs(redis.call('HVALS', base .. 'st' .. shard)) do
    if string.match(state, '^%d+,%d+,%d+,1,') then count = count + 1 end
  end
  return count
end
local function quiet(shard, died)
  local states = redis.call('HGETALL', base .. 'st' .. shard)
  for i = 1, #states, 2 do
    local counted, due = string.match(states[i + 1], '^(%d+,%d+,%d+),1,%d+,(%d+)$')
    if counted then redis.call('HSET', base .. 'st' .. shard, states[i], counted .. ',0,' .. died .. ',' .. due) end
  end
end
"""

DECLARE: Final = (
    _CLOCK
    + _DECLARE
    + """
local shards, cap, mode = declare(ARGV[1], ARGV[2], ARGV[3])
return {shards, cap, mode}
"""
)

# ARGV: room, delay ms, window ms of the idempotency key, the key, shards, cap, is a reply, first id;
# then of each record: hash of its key, hash of its id, head, body, time to live in ms or 0.
APPEND: Final = (
    _CLOCK
    + _DECLARE
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
  local shard = ARGV[mode == 'competing' and i + 1 or i] % shards
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
if ARGV[2] ~= '0' then said[1] = '*' end
for shard in pairs(rung) do said[#said + 1] = shard end
redis.call('PUBLISH', base .. 'bell', table.concat(said, ','))
return {'stored', shards, cap, mode, held + room, room}
"""
)

# ARGV: most. Turns delayed messages that are due into plain ones; when the next one is due, or -1.
MOVE: Final = (
    _CLOCK
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
if #said > 0 then redis.call('PUBLISH', base .. 'bell', table.concat(said, ',')) end
local next = redis.call('ZRANGE', late, 0, 0, 'WITHSCORES')
return next[2] and math.max(0, tonumber(next[2]) - now) or -1
"""
)

# ARGV: me, lease ms, takes, begins, may claim, shards, cap.
BEAT: Final = (
    _CLOCK
    + _DECLARE
    + _QUIET
    + """
local me, takes = ARGV[1], ARGV[3] == '1'
local shards = declare(ARGV[6], ARGV[7], '')
local members, active, book = base .. 'm', base .. 'a', base .. 'o'
local owner, freed = {}, false
local flat = redis.call('HGETALL', book)
local stored = {}
for i = 1, #flat, 2 do stored[flat[i]] = flat[i + 1] end
for shard = 0, shards - 1 do owner[shard] = stored['o' .. shard] or '' end

local function bury(name, died)
  local mine, count = {}, 0
  for shard = 0, shards - 1 do
    if owner[shard] == name then
      mine[#mine + 1] = shard
      if died then count = count + running(shard) end
    end
  end
  for _, shard in ipairs(mine) do
    quiet(shard, count)
    if died then
      local last = redis.call('XREVRANGE', base .. 's' .. shard, '+', '-', 'COUNT', 1)
      if last[1] then redis.call('HSET', book, 'x' .. shard, last[1][1]) end
    end
    redis.call('HSET', book, 'o' .. shard, '')
    owner[shard] = ''
    freed = true
  end
  redis.call('ZREM', members, name)
  redis.call('ZREM', active, name)
end

if ARGV[4] == '1' then bury(me, false) end
for _, name in ipairs(redis.call('ZRANGEBYSCORE', members, '-inf', now)) do bury(name, name ~= me) end
local news = redis.call('ZADD', members, now + ARGV[2], me) == 1 or freed
if takes then
  news = redis.call('ZADD', active, now + ARGV[2], me) == 1 or news
else
  news = redis.call('ZREM', active, me) == 1 or news
end

local names = redis.call('ZRANGE', active, 0, -1)
local counts, free = {[me] = 0}, {}
for _, name in ipairs(names) do counts[name] = 0 end
for shard = 0, shards - 1 do
  local name = owner[shard]
  if name == '' then free[#free + 1] = shard
  elseif counts[name] then counts[name] = counts[name] + 1 end
end
local least = #names > 0 and math.floor(shards / #names) or 0
local most = #names > 0 and math.ceil(shards / #names) or 0
local missing, richest = 0, me
for _, name in ipairs(names) do
  if name ~= me then missing = missing + math.max(0, least - counts[name]) end
  if counts[name] > counts[richest] or (counts[name] == counts[richest] and name < richest) then richest = name end
end
local surplus = 0
if takes then
  while ARGV[5] == '1' and #free > 0 and (counts[me] < least or (counts[me] < most and #free > missing)) do
    local shard = table.remove(free)
    local token = math.max((tonumber(stored['t' .. shard]) or 0) + 1, us)
    redis.call('HSET', book, 'o' .. shard, me, 't' .. shard, string.format('%.0f', token))
    stored['t' .. shard] = string.format('%.0f', token)
    owner[shard] = me
    counts[me] = counts[me] + 1
  end
  if counts[me] > most then surplus = counts[me] - most
  elseif missing > #free and counts[me] > least and richest == me then surplus = 1 end
elseif #names > 0 then
  surplus = counts[me]
end
if news then redis.call('PUBLISH', base .. 'bell', 'm') end
local held = {}
for shard = 0, shards - 1 do
  if owner[shard] == me then
    held[#held + 1] = shard
    held[#held + 1] = stored['t' .. shard]
  end
end
local ends = redis.call('ZRANGE', members, 0, 0, 'WITHSCORES')
local late = redis.call('ZRANGE', base .. 'late', 0, 0, 'WITHSCORES')
return {string.format('%.0f', us), shards, surplus, tonumber(ends[2]) - now,
        late[2] and math.max(0, tonumber(late[2]) - now) or -1, held}
"""
)

# ARGV: me, then shard and token of each. Given up in peace.
RELEASE: Final = (
    _CLOCK
    + _QUIET
    + """
local book = base .. 'o'
for i = 2, #ARGV, 2 do
  local found = redis.call('HMGET', book, 'o' .. ARGV[i], 't' .. ARGV[i])
  if found[1] == ARGV[1] and found[2] == ARGV[i + 1] then
    quiet(ARGV[i], 0)
    redis.call('HSET', book, 'o' .. ARGV[i], '')
  end
end
redis.call('PUBLISH', base .. 'bell', 'm')
return 1
"""
)

# ARGV: me. The member goes; what it holds is free.
LEAVE: Final = (
    _CLOCK
    + _QUIET
    + """
local book = base .. 'o'
local flat = redis.call('HGETALL', book)
for i = 1, #flat, 2 do
  if flat[i + 1] == ARGV[1] and string.sub(flat[i], 1, 1) == 'o' then
    quiet(string.sub(flat[i], 2), 0)
    redis.call('HSET', book, flat[i], '')
  end
end
redis.call('ZREM', base .. 'm', ARGV[1])
redis.call('ZREM', base .. 'a', ARGV[1])
redis.call('PUBLISH', base .. 'bell', 'm')
return 1
"""
)

# ARGV: me, shard, token, then id and state of each. 0: refused by the fence.
START: Final = (
    _CLOCK
    + _ALIVE
    + """
if not owns(ARGV[1], ARGV[2], ARGV[3]) then return 0 end
for i = 4, #ARGV, 2 do redis.call('HSET', base .. 'st' .. ARGV[2], ARGV[i], ARGV[i + 1]) end
return 1
"""
)

_INTER: Final = """
local function inter(id, letter)
  local cursor = string.format('%016.0f-%010d', us, redis.call('HINCRBY', base .. 'spec', 'died', 1))
  redis.call('HSET', base .. 'dead', cursor, letter)
  redis.call('ZADD', base .. 'deadz', 0, cursor)
  redis.call('ZADD', base .. 'deadid', 0, id .. '\\0' .. cursor)
end
"""

# ARGV: me, shard, token, chunk of lives, how many, most lives kept; the numbers of: ids to remove, ids whose
# state goes, (id, state) to keep, dead (id, id of the message, letter), ids
# that had a time to live; then these. 0: refused by the fence.
SETTLE: Final = (
    _CLOCK
    + _ALIVE
    + _INTER
    + """
local shard = ARGV[2]
if not owns(ARGV[1], shard, ARGV[3]) then return 0 end
local at = 12
local function each(count, width, call)
  while count > 0 do
    local some = math.min(count, 500)
    call(at, at + some * width - 1)
    at = at + some * width
    count = count - some
  end
end
each(tonumber(ARGV[7]), 1, function(from, to) redis.call('XDEL', base .. 's' .. shard, unpack(ARGV, from, to)) end)
each(tonumber(ARGV[8]), 1, function(from, to) redis.call('HDEL', base .. 'st' .. shard, unpack(ARGV, from, to)) end)
each(tonumber(ARGV[9]), 2, function(from, to) redis.call('HSET', base .. 'st' .. shard, unpack(ARGV, from, to)) end)
for _ = 1, tonumber(ARGV[10]) do
  -- A settlement that is repeated after its answer was lost must not bury twice.
  if redis.call('XDEL', base .. 's' .. shard, ARGV[at]) == 1 then
    inter(ARGV[at + 1], ARGV[at + 2])
  end
  redis.call('HDEL', base .. 'st' .. shard, ARGV[at])
  at = at + 3
end
for i = at, at + ARGV[11] - 1 do redis.call('ZREM', base .. 'ttl', shard .. ':' .. ARGV[i]) end
local lives = tonumber(ARGV[5])
if lives > 0 then
  local done = base .. 'done' .. shard
  redis.call('RPUSH', done, ARGV[4])
  local count = redis.call('HINCRBY', base .. 'done', 'n' .. shard, lives)
  local sizes = base .. 'donen' .. shard
  redis.call('RPUSH', sizes, lives)
  while count > tonumber(ARGV[6]) do
    local oldest = tonumber(redis.call('LPOP', sizes) or '0')
    redis.call('LPOP', done)
    if oldest == 0 then break end
    count = redis.call('HINCRBY', base .. 'done', 'n' .. shard, -oldest)
  end
end
return 1
"""
)

DEPTH: Final = (
    _CLOCK
    + """
local shards = tonumber(redis.call('HGET', base .. 'spec', 'shards') or '0')
local late = base .. 'late'
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
return {held, runs, waits, scheduled, redis.call('HLEN', base .. 'dead'), now - oldest}
"""
)

# ARGV: shards, cap; of each letter its cursor, hash of key, hash of id, id, new head, body, time to live.
REVIVE: Final = (
    _CLOCK
    + _DECLARE
    + """
local shards, _, mode = declare(ARGV[1], ARGV[2], '')
local revived, said = 0, {}
for i = 3, #ARGV, 7 do
  if redis.call('HDEL', base .. 'dead', ARGV[i]) == 1 then
    redis.call('ZREM', base .. 'deadz', ARGV[i])
    redis.call('ZREM', base .. 'deadid', ARGV[i + 3] .. '\\0' .. ARGV[i])
    local shard = ARGV[mode == 'competing' and i + 2 or i + 1] % shards
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
    _CLOCK
    + """
if ARGV[1] == '1' then
  local last = redis.call('ZREVRANGE', base .. 'm', 0, 0, 'WITHSCORES')
  if last[2] and tonumber(last[2]) > now then return 0 end
end
local shards = tonumber(redis.call('HGET', base .. 'spec', 'shards') or '0')
for shard = 0, shards - 1 do
  redis.call('DEL', base .. 's' .. shard, base .. 'st' .. shard, base .. 'done' .. shard, base .. 'donen' .. shard)
end
for _, name in ipairs({'spec', 'm', 'a', 'o', 'done', 'late', 'ttl', 'dead', 'deadz', 'deadid'}) do
  redis.call('DEL', base .. name)
end
return 1
"""
)

# KEYS: values, epoch, note. ARGV: key, value, version, ttl ms or 0, counts for the epoch.
PUT: Final = """
local kept = ARGV[4] ~= '0' and redis.call('GET', KEYS[3]) or redis.call('HGET', KEYS[1], ARGV[1])
local version = kept and string.match(kept, '^(%d+) ') or '0'
if version ~= ARGV[3] then return 0 end
local next = redis.call('HINCRBY', KEYS[2], 'versions', 1)
local entry = next .. ' ' .. ARGV[2]
if ARGV[4] ~= '0' then redis.call('SET', KEYS[3], entry, 'PX', ARGV[4])
else redis.call('HSET', KEYS[1], ARGV[1], entry) end
if ARGV[5] == '1' then redis.call('HSET', KEYS[2], 'epoch', next) end
return next
"""

# ARGV: of each expired record: shard, owner it may have or nothing, token, its id in the stream, its own id, letter.
BURY: Final = (
    _CLOCK
    + _INTER
    + """
local buried = 0
for i = 1, #ARGV, 6 do
  local shard, at = ARGV[i], ARGV[i + 3]
  local found = redis.call('HMGET', base .. 'o', 'o' .. shard, 't' .. shard)
  local owner = found[1] or ''
  local free = owner == '' or tonumber(redis.call('ZSCORE', base .. 'm', owner) or '0') <= now
  if free or (owner == ARGV[i + 1] and found[2] == ARGV[i + 2]) then
    local state = redis.call('HGET', base .. 'st' .. shard, at)
    if not (state and string.match(state, '^%d+,%d+,%d+,1,')) then
      if redis.call('XDEL', base .. 's' .. shard, at) == 1 then
        inter(ARGV[i + 4], ARGV[i + 5])
        buried = buried + 1
      end
      redis.call('HDEL', base .. 'st' .. shard, at)
      redis.call('ZREM', base .. 'ttl', shard .. ':' .. at)
    end
  end
end
return buried
"""
)

ALL: Final = (BURY, DECLARE, APPEND, MOVE, BEAT, RELEASE, LEAVE, START, SETTLE, DEPTH, REVIVE, PURGE, DROP, PUT)
_HASHES: Final = {script: sha1(script.encode(), usedforsecurity=False).hexdigest() for script in ALL}


def load() -> list[Command]:
    """Make the server know them; said on each new connection."""
    return [("SCRIPT", "LOAD", script) for script in ALL]


def run(script: str, base: str, *arguments: str | bytes | int | float) -> Command:
    """The command that runs a script on one queue."""
    return ("EVALSHA", _HASHES[script], 1, base, *arguments)


def run_on(script: str, keys: tuple[str, ...], *arguments: str | bytes | int | float) -> Command:
    return ("EVALSHA", _HASHES[script], len(keys), *keys, *arguments)
