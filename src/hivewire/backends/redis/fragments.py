"""Parts that several scripts begin with."""

from __future__ import annotations

from typing import Final

CLOCK: Final = """
local base = KEYS[1]
local time = redis.call('TIME')
local us = time[1] * 1000000 + time[2]
local now = math.floor(us / 1000)
"""

NEEDED: Final = """
-- A server without memory lets a script go on that has written before: leases and settlements must not stop.
redis.call('ZREM', base .. 'm', '')
"""

DECLARE_IT: Final = """
local function declare(shards, cap, mode)
  local spec = base .. 'spec'
  if redis.call('HSETNX', spec, 'shards', shards) == 1 then
    redis.call('HSET', spec, 'cap', cap, 'mode', mode, 'counts', 1)
  end
  local found = redis.call('HMGET', spec, 'shards', 'cap', 'mode')
  if found[3] == '' and mode ~= '' then
    redis.call('HSET', spec, 'mode', mode)
    found[3] = mode
  end
  return tonumber(found[1]), tonumber(found[2]), found[3]
end
"""

ALIVE: Final = """
local lease
local function owns(me, shard, token)
  lease = lease or tonumber(redis.call('ZSCORE', base .. 'm', me) or '0')
  if lease <= now then return false end
  local found = redis.call('HMGET', base .. 'o', 'o' .. shard, 't' .. shard)
  return found[1] == me and found[2] == token
end
"""

QUIET: Final = """
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

INTER: Final = """
local function inter(id, letter)
  local cursor = string.format('%016.0f-%010d', us, redis.call('HINCRBY', base .. 'spec', 'died', 1))
  redis.call('HSET', base .. 'dead', cursor, letter)
  redis.call('ZADD', base .. 'deadz', 0, cursor)
  redis.call('ZADD', base .. 'deadid', 0, id .. '\\0' .. cursor)
end
"""

PAST: Final = """
local function forget_past(ms, most)
  redis.call('ZREMRANGEBYSCORE', base .. 'past', '-inf', now - ms)
  redis.call('ZREMRANGEBYRANK', base .. 'past', 0, -1 - most)
end
"""

SHARD_OF: Final = """
-- In a competing queue shards are levels: the most urgent first.
local function shard_of(mode, shards, hashed, level)
  if mode == 'competing' then return math.floor(level * shards / 10) end
  return hashed % shards
end
"""
