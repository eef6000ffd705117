"""Scripts of competing queues: a consumer group hands out the entries one by one.

The shards are levels here, the most urgent first. Each member is a consumer of the group; what is pending with it
is its own for as long as its lease, with `k` for the fencing token. Entries that wait for another attempt, or were
given back, are pending with the consumer `-`, and stand in `w` with the time from which they may be taken. `live`
says which entry a life is handled by, `past` which lives were settled lately, `x` which entries were with a member
that died.
"""

from __future__ import annotations

from typing import Final

from hivewire.backends.redis.fragments import CLOCK, DECLARE_IT, INTER, NEEDED, PAST

GROUP: Final = "hivewire"
FREE: Final = "-"

NAMES: Final = f"\nlocal GROUP, FREE = '{GROUP}', '{FREE}'\n"

_POOL: Final = (
    NAMES
    + """
local function stream(shard) return base .. 's' .. shard end
local function mine(me, token)
  local lease = redis.call('ZSCORE', base .. 'm', me)
  return lease and tonumber(lease) > now and redis.call('HGET', base .. 'k', me) == token
end
local function place_of(place)
  local shard, id = string.match(place, '^(%d+):(.+)$')
  return shard, id
end
local function exists(place)
  local shard, id = place_of(place)
  return redis.call('XRANGE', stream(shard), id, id)[1] ~= nil
end
"""
)

# What is pending with a member goes back; then it is no consumer any more. `shards` is known.
_BURY: Final = """
local function bury(name, died)
  local running, freed = {}, false
  for shard = 0, shards - 1 do
    while true do
      local found = redis.pcall('XPENDING', stream(shard), GROUP, '-', '+', 1000, name)
      if found.err or #found == 0 then break end
      local ids = {}
      for _, entry in ipairs(found) do
        local id = entry[1]
        ids[#ids + 1] = id
        redis.call('ZADD', base .. 'w', 0, shard .. ':' .. id)
        if died then redis.call('SADD', base .. 'x', shard .. ':' .. id) end
        local state = redis.call('HGET', base .. 'st' .. shard, id)
        local counted, due = string.match(state or '', '^(%d+,%d+,%d+),1,%d+,(%d+)$')
        if counted then running[#running + 1] = {shard, id, counted, due} end
      end
      ids[#ids + 1] = 'JUSTID'
      redis.call('XCLAIM', stream(shard), GROUP, FREE, 0, unpack(ids))
      freed = true
    end
    redis.pcall('XGROUP', 'DELCONSUMER', stream(shard), GROUP, name)
  end
  for _, at in ipairs(running) do
    redis.call('HSET', base .. 'st' .. at[1], at[2], at[3] .. ',0,' .. (died and #running or 0) .. ',' .. at[4])
  end
  redis.call('ZREM', base .. 'm', name)
  redis.call('HDEL', base .. 'k', name)
  return freed
end
"""

# ARGV: me, lease ms, takes, begins, may claim, shards, cap. Answers as the heartbeat of an ordered queue does; the
# member's own entries are its only shard.
BEAT: Final = (
    CLOCK
    + NEEDED
    + DECLARE_IT
    + _POOL
    + """
local me = ARGV[1]
local made = redis.call('EXISTS', base .. 'spec') == 0
local shards = declare(ARGV[6], ARGV[7], 'competing')
"""
    + _BURY
    + """
local freed = false
if ARGV[4] == '1' then freed = bury(me, false) end
for _, name in ipairs(redis.call('ZRANGEBYSCORE', base .. 'm', '-inf', now)) do
  freed = bury(name, name ~= me) or freed
end
local token = redis.call('HGET', base .. 'k', me)
if not token then
  token = string.format('%.0f', math.max((tonumber(redis.call('HGET', base .. 'spec', 'token')) or 0) + 1, us))
  redis.call('HSET', base .. 'spec', 'token', token)
  redis.call('HSET', base .. 'k', me, token)
end
redis.call('ZADD', base .. 'm', now + ARGV[2], me)
if freed or redis.call('ZCOUNT', base .. 'w', '-inf', now) > 0 then redis.call('PUBLISH', base .. 'bell', 'w') end
local ends = redis.call('ZRANGE', base .. 'm', 0, 0, 'WITHSCORES')
local late = redis.call('ZRANGE', base .. 'late', 0, 0, 'WITHSCORES')
return {string.format('%.0f', us), shards, 0, tonumber(ends[2]) - now,
        late[2] and math.max(0, tonumber(late[2]) - now) or -1, {0, token}, made and 1 or 0}
"""
)

# ARGV: me. The member goes.
LEAVE: Final = (
    CLOCK
    + NEEDED
    + _POOL
    + """
local shards = tonumber(redis.call('HGET', base .. 'spec', 'shards') or '0')
"""
    + _BURY
    + """
if bury(ARGV[1], false) then redis.call('PUBLISH', base .. 'bell', 'w') end
return 1
"""
)

# ARGV: me, token, most; then levels and how many of each are to be taken before others.
# 0: refused by the fence. Else of each entry: shard, id, fields, counters or nothing, whether
# its life was settled or is with another entry, whether it was with a member that died.
TAKE: Final = (
    CLOCK
    + _POOL
    + """
local me, room = ARGV[1], tonumber(ARGV[3])
if not mine(me, ARGV[2]) then return 0 end
local shards = tonumber(redis.call('HGET', base .. 'spec', 'shards') or '0')
local taken = {}
local function life(fields)
  local is_head, head = pcall(cmsgpack.unpack, fields[2])
  if not is_head or type(head) ~= 'table' or type(head[1]) ~= 'string' then return nil end
  local replay = tonumber(head[7]) or 0
  return replay == 0 and head[1] or head[1] .. '\\0' .. string.format('%d', replay)
end
local function give(shard, entry)
  local id, fields, seen = entry[1], entry[2], 0
  local place, found = shard .. ':' .. id, life(fields)
  if found then
    if redis.call('ZSCORE', base .. 'past', found) then seen = 1
    else
      local other = redis.call('HGET', base .. 'live', found)
      if other and other ~= place and exists(other) then seen = 1
      else redis.call('HSET', base .. 'live', found, place) end
    end
  end
  local state = redis.call('HGET', base .. 'st' .. shard, id)
  taken[#taken + 1] = {tonumber(shard), id, fields, state, seen, redis.call('SREM', base .. 'x', place)}
  room = room - 1
end
for _, place in ipairs(redis.call('ZRANGEBYSCORE', base .. 'w', '-inf', now, 'LIMIT', 0, room)) do
  local shard, id = place_of(place)
  local got = redis.pcall('XCLAIM', stream(shard), GROUP, me, 0, id)
  redis.call('ZREM', base .. 'w', place)
  if not got.err and got[1] and got[1][2] then give(shard, got[1])
  elseif not exists(place) then redis.call('HDEL', base .. 'st' .. shard, id) end
end
local function from(shard, most)
  local read = {'XREADGROUP', 'GROUP', GROUP, me, 'COUNT', most, 'STREAMS', stream(shard), '>'}
  local got = redis.pcall(unpack(read))
  if got and got.err and string.match(got.err, 'NOGROUP') then
    redis.call('XGROUP', 'CREATE', stream(shard), GROUP, '0', 'MKSTREAM')
    got = redis.pcall(unpack(read))
  end
  if got and got.err then return got end
  if got then
    for _, entry in ipairs(got[1][2]) do give(shard, entry) end
  end
end
for i = 4, #ARGV, 2 do
  local most = math.min(room, tonumber(ARGV[i + 1]))
  local wrong = most > 0 and from(math.floor(ARGV[i] * shards / 10), most)
  if wrong then return wrong end
end
for shard = 0, shards - 1 do
  if room <= 0 then break end
  local wrong = from(shard, room)
  if wrong then return wrong end
end
return taken
"""
)

# ARGV: me, token, then shard, id and state of each. 0: refused by the fence.
START: Final = (
    CLOCK
    + NEEDED
    + _POOL
    + """
if not mine(ARGV[1], ARGV[2]) then return 0 end
for i = 3, #ARGV, 3 do redis.call('HSET', base .. 'st' .. ARGV[i], ARGV[i + 1], ARGV[i + 2]) end
return 1
"""
)

# ARGV: me, token, shard, ms that lives are kept, how many are; the numbers of: ids to remove, lives settled, ids whose
# state goes, (id, state or nothing, when it may be taken) to keep, dead (id, id of the message, letter), ids that had a
# time to live; then these. 0: refused by the fence.
SETTLE: Final = (
    CLOCK
    + NEEDED
    + _POOL
    + INTER
    + PAST
    + """
if not mine(ARGV[1], ARGV[2]) then return 0 end
local shard, at, gone, rings = ARGV[3], 12, 0, false
local from = stream(shard)
local function each(count, call)
  count = tonumber(count)
  while count > 0 do
    local some = math.min(count, 500)
    call(at, at + some - 1)
    at = at + some
    count = count - some
  end
end
each(ARGV[6], function(first, last)
  redis.pcall('XACK', from, GROUP, unpack(ARGV, first, last))
  gone = gone + redis.call('XDEL', from, unpack(ARGV, first, last))
end)
each(ARGV[7], function(first, last)
  local scored = {}
  for i = first, last do
    scored[#scored + 1] = now
    scored[#scored + 1] = ARGV[i]
  end
  redis.call('HDEL', base .. 'live', unpack(ARGV, first, last))
  redis.call('ZADD', base .. 'past', unpack(scored))
end)
each(ARGV[8], function(first, last) redis.call('HDEL', base .. 'st' .. shard, unpack(ARGV, first, last)) end)
for _ = 1, tonumber(ARGV[9]) do
  local id, state, due = ARGV[at], ARGV[at + 1], tonumber(ARGV[at + 2])
  local moved = redis.pcall('XCLAIM', from, GROUP, FREE, 0, id, 'JUSTID')
  if moved[1] then redis.call('ZADD', base .. 'w', due, shard .. ':' .. id) end
  if state ~= '' and redis.call('XRANGE', from, id, id)[1] then redis.call('HSET', base .. 'st' .. shard, id, state) end
  rings = rings or due <= now
  at = at + 3
end
for _ = 1, tonumber(ARGV[10]) do
  -- A settlement that is repeated after its answer was lost must not bury twice.
  redis.pcall('XACK', from, GROUP, ARGV[at])
  if redis.call('XDEL', from, ARGV[at]) == 1 then
    gone = gone + 1
    inter(ARGV[at + 1], ARGV[at + 2])
  end
  redis.call('HDEL', base .. 'st' .. shard, ARGV[at])
  at = at + 3
end
each(ARGV[11], function(first, last)
  for i = first, last do redis.call('ZREM', base .. 'ttl', shard .. ':' .. ARGV[i]) end
end)
if ARGV[7] ~= '0' then forget_past(ARGV[4], ARGV[5]) end
if gone > 0 then redis.call('HINCRBY', base .. 'done', 'g' .. shard, gone) end
if rings then redis.call('PUBLISH', base .. 'bell', 'w') end
return 1
"""
)

# ARGV: me. Which entries the server holds pending with this member, as shard and id.
MINE: Final = (
    CLOCK
    + _POOL
    + """
local found = {}
local shards = tonumber(redis.call('HGET', base .. 'spec', 'shards') or '0')
for shard = 0, shards - 1 do
  local got = redis.pcall('XPENDING', stream(shard), GROUP, '-', '+', 100000, ARGV[1])
  if not got.err then
    for _, entry in ipairs(got) do found[#found + 1] = shard .. ':' .. entry[1] end
  end
end
return found
"""
)

# What the group believes to have handed out and nobody has, because somebody meddled with the group (XGROUP SETID,
# XGROUP DELCONSUMER, XACK): it is handed out again. How many.
MEND: Final = (
    CLOCK
    + _POOL
    + """
local shards = tonumber(redis.call('HGET', base .. 'spec', 'shards') or '0')
local mended = 0
for shard = 0, shards - 1 do
  local from, reached, pending, behind = stream(shard), nil, 0, nil
  local told = redis.pcall('XINFO', 'GROUPS', from)
  for _, group in ipairs(told.err and {} or told) do
    local found = {}
    for i = 1, #group, 2 do found[group[i]] = group[i + 1] end
    if found.name == GROUP then reached, pending, behind = found['last-delivered-id'], found.pending, found.lag end
  end
  if reached and not (behind and redis.call('XLEN', from) == pending + behind) then
    local at = '-'
    while true do
      local page = redis.call('XRANGE', from, at, reached, 'COUNT', 500)
      for _, entry in ipairs(page) do
        if not redis.call('XPENDING', from, GROUP, entry[1], entry[1], 1)[1] then
          redis.call('XCLAIM', from, GROUP, FREE, 0, entry[1], 'FORCE', 'JUSTID')
          redis.call('ZADD', base .. 'w', 0, shard .. ':' .. entry[1])
          mended = mended + 1
        end
      end
      if #page < 500 then break end
      at = '(' .. page[#page][1]
    end
  end
end
if mended > 0 then redis.call('PUBLISH', base .. 'bell', 'w') end
return mended
"""
)
