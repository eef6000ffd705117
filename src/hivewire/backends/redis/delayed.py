"""Scripts on delayed messages: `late` holds 16 digits of a running number and the packed entry, by due time in ms."""

from __future__ import annotations

from typing import Final

# ARGV: due time and number to begin after, how many. Of each its number, due time, when it was stored, head, body.
LATE: Final = """
local found, skip = {}, 0
while #found < tonumber(ARGV[3]) do
  local page = redis.call('ZRANGEBYSCORE', KEYS[1] .. 'late', ARGV[1], '+inf', 'WITHSCORES', 'LIMIT', skip, ARGV[3])
  if #page == 0 then break end
  skip = skip + #page / 2
  for i = 1, #page, 2 do
    local number = string.sub(page[i], 1, 16)
    if (page[i + 1] ~= ARGV[1] or number > ARGV[2]) and #found < tonumber(ARGV[3]) then
      local entry = cmsgpack.unpack(string.sub(page[i], 17))
      found[#found + 1] = {number, page[i + 1], entry[2], entry[3], entry[4]}
    end
  end
end
return found
"""

# ARGV: of each its due time and number. Which of them were there, by place from 1.
WITHDRAW: Final = """
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local gone = {}
for i = 1, #ARGV, 2 do
  if tonumber(ARGV[i]) > now then
    for _, member in ipairs(redis.call('ZRANGEBYSCORE', KEYS[1] .. 'late', ARGV[i], ARGV[i])) do
      if string.sub(member, 1, 16) == ARGV[i + 1] then
        redis.call('ZREM', KEYS[1] .. 'late', member)
        gone[#gone + 1] = (i + 1) / 2
      end
    end
  end
end
return gone
"""
