#!lua flags=allow-oom
-- Takes tokens from a bucket (generic cell rate algorithm), also while there is no memory left for other writes: limits
-- hold then, too. The key holds the time at which the bucket will be full, in
-- microseconds since 1970. Returns {tokens taken, tokens left, microseconds until there are enough tokens}.
-- KEYS: bucket. ARGV: microseconds until a token comes back, the bucket's capacity, fewest and most tokens to take.

local interval, capacity, least, most = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[4])
local time = redis.call('TIME')
local now = tonumber(time[1]) * 1000000 + tonumber(time[2])
local full_at = math.max(now, tonumber(redis.call('GET', KEYS[1]) or 0) or 0)
-- A time beyond that of an empty bucket was stored by another program, or by a server whose clock was ahead.
full_at = math.min(full_at, now + capacity * interval)
local available = math.floor((now + capacity * interval - full_at) / interval)
if available < least then
  return { 0, available, math.ceil(full_at + least * interval - now - capacity * interval) }
end
local taken = math.min(available, most)
full_at = full_at + taken * interval
redis.call('SET', KEYS[1], string.format('%.0f', full_at), 'PX', math.ceil((full_at - now) / 1000) + 1)
return { taken, available - taken, 0 }
