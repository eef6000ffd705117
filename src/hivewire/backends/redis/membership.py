"""Scripts of who owns what: heartbeats, fair shares, leaving."""

from __future__ import annotations

from typing import Final

from hivewire.backends.redis.fragments import CLOCK, DECLARE_IT, NEEDED, QUIET

# ARGV: me, lease ms, takes, begins, may claim, shards, cap.
BEAT: Final = (
    CLOCK
    + NEEDED
    + DECLARE_IT
    + QUIET
    + """
local me, takes = ARGV[1], ARGV[3] == '1'
local made = redis.call('EXISTS', base .. 'spec') == 0
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
if news then redis.call('PUBLISH', base .. 'news', 'm') end
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
        late[2] and math.max(0, tonumber(late[2]) - now) or -1, held, made and 1 or 0}
"""
)

# KEYS: the members. ARGV: me, lease ms. A heartbeat of one key, for a queue whose other keys are on their way to
# another node of a cluster: 0 where the lease has ended.
RENEW: Final = """
redis.call('ZREM', KEYS[1], '')
local time = redis.call('TIME')
local now = math.floor((time[1] * 1000000 + time[2]) / 1000)
local ends = redis.call('ZSCORE', KEYS[1], ARGV[1])
if not ends or tonumber(ends) <= now then return 0 end
redis.call('ZADD', KEYS[1], now + ARGV[2], ARGV[1])
return 1
"""

# ARGV: me, then shard and token of each. Given up in peace.
RELEASE: Final = (
    CLOCK
    + NEEDED
    + QUIET
    + """
local book = base .. 'o'
for i = 2, #ARGV, 2 do
  local found = redis.call('HMGET', book, 'o' .. ARGV[i], 't' .. ARGV[i])
  if found[1] == ARGV[1] and found[2] == ARGV[i + 1] then
    quiet(ARGV[i], 0)
    redis.call('HSET', book, 'o' .. ARGV[i], '')
  end
end
redis.call('PUBLISH', base .. 'news', 'm')
return 1
"""
)

# ARGV: me. The member goes; what it holds is free.
LEAVE: Final = (
    CLOCK
    + NEEDED
    + QUIET
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
redis.call('PUBLISH', base .. 'news', 'm')
return 1
"""
)
