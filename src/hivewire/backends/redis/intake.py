"""Scripts that take what programs of the reference have sent."""

from __future__ import annotations

from typing import Final

from hivewire.backends.redis import competing
from hivewire.backends.redis.fragments import CLOCK, DECLARE_IT, SHARD_OF

# KEYS: a stream of the reference. ARGV: place, most. What comes behind the place, how many entries were ever added, how
# many there are. The stream is kept from expiring, and our group in it is set to the place.
INLET_READ: Final = f"""
local GROUP = '{competing.GROUP}'
local found = redis.call('XRANGE', KEYS[1], '(' .. ARGV[1], '+', 'COUNT', ARGV[2])
if redis.call('EXISTS', KEYS[1]) == 0 then return {{found, 0, 0}} end
redis.call('PERSIST', KEYS[1])
local told, added, length = redis.call('XINFO', 'STREAM', KEYS[1]), 0, 0
for i = 1, #told, 2 do
  if told[i] == 'length' then length = told[i + 1] elseif told[i] == 'entries-added' then added = told[i + 1] end
end
if redis.pcall('XGROUP', 'SETID', KEYS[1], GROUP, ARGV[1]).err then
  redis.pcall('XGROUP', 'CREATE', KEYS[1], GROUP, ARGV[1])
end
return {{found, added, length}}
"""

# KEYS: a stream of the reference. ARGV: a group of its readers. The place before all that they have not acknowledged,
# how many entries stand behind it, and how many were ever added; nothing where there is no such group.
INLET_BEGIN: Final = """
local groups = redis.pcall('XINFO', 'GROUPS', KEYS[1])
if groups.err then return {} end
local place
for _, told in ipairs(groups) do
  local group = {}
  for i = 1, #told, 2 do group[told[i]] = told[i + 1] end
  if group['name'] == ARGV[1] then place = group['last-delivered-id'] end
end
if not place then return {} end
local pending = redis.call('XPENDING', KEYS[1], ARGV[1])
if pending[1] > 0 then
  local before = redis.call('XREVRANGE', KEYS[1], '(' .. pending[2], '-', 'COUNT', 1)
  place = before[1] and before[1][1] or '0-0'
end
local told, added = redis.call('XINFO', 'STREAM', KEYS[1]), 0
for i = 1, #told, 2 do if told[i] == 'entries-added' then added = told[i + 1] end end
return {place, #redis.call('XRANGE', KEYS[1], '(' .. place, '+'), added}
"""

# KEYS: base of a queue. ARGV: where to begin in the reference's stream, and how many of its entries are not ours. Where
# we are: somebody may have begun before. Nothing: the queue is not there.
INLET_SEAT: Final = """
local spec = KEYS[1] .. 'spec'
if redis.call('HEXISTS', spec, 'shards') == 0 then return false end
if redis.call('HSETNX', spec, 'inlet', ARGV[1]) == 1 then redis.call('HSET', spec, 'inlet_n', ARGV[2]) end
return redis.call('HGET', spec, 'inlet')
"""

# ARGV: shards, cap, place that was read from, place that was reached, entries ever added to that stream, its length,
# whether nothing stood behind; then of each record as for APPEND. The place that is reached now, and how many entries
# are missing between what was added and what was read.
INLET_STORE: Final = (
    CLOCK
    + DECLARE_IT
    + SHARD_OF
    + """
local shards, cap, mode = declare(ARGV[1], ARGV[2], '')
local spec, rung, said = base .. 'spec', {}, {}
local at = redis.call('HMGET', spec, 'inlet', 'inlet_n')
if (at[1] or '0-0') ~= ARGV[3] then return {at[1] or '0-0', 0} end
local moved, lost, added = (#ARGV - 7) / 5, 0, tonumber(ARGV[5])
-- What was gone before we came for the first time was never ours.
local count = at[2] and tonumber(at[2]) or added - ARGV[6]
if ARGV[7] == '1' then
  if added >= count then lost = math.max(0, added - count - moved) end
  count = added
else
  count = count + moved
end
redis.call('HSET', spec, 'inlet', ARGV[4], 'inlet_n', count)
for i = 8, #ARGV, 5 do
  local shard = shard_of(mode, shards, ARGV[i], ARGV[i + 1])
  local id = redis.call('XADD', base .. 's' .. shard, '*', 'h', ARGV[i + 2], 'b', ARGV[i + 3])
  if ARGV[i + 4] ~= '0' then redis.call('ZADD', base .. 'ttl', now + ARGV[i + 4], shard .. ':' .. id) end
  rung[shard] = true
end
for shard in pairs(rung) do said[#said + 1] = shard end
redis.call('PUBLISH', base .. 'bell', table.concat(said, ','))
if lost > 0 then
  redis.call('HINCRBY', spec, 'lost', lost)
  redis.call('HSET', spec, 'lost_at', now)
end
return {ARGV[4], lost}
"""
)
