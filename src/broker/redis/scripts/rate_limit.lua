-- Takes from a caller's bucket (the generic cell rate algorithm): it holds the time at which it will be full again, in microseconds.
-- Returns {taken, left, microseconds until there are enough}.
-- KEYS: bucket. ARGV: microseconds that one takes to come back, most that it holds, least to take, most to take.

local interval, burst, least, most = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[4])
local time = redis.call('TIME')
local now = tonumber(time[1]) * 1000000 + tonumber(time[2])
local full = math.max(now, tonumber(redis.call('GET', KEYS[1]) or 0) or 0)
-- One that lies beyond all that could have been taken is none of ours, or of a clock that was ahead.
full = math.min(full, now + burst * interval)
local there = math.floor((now + burst * interval - full) / interval)
if there < least then
  return { 0, there, math.ceil(full + least * interval - now - burst * interval) }
end
local taken = math.min(there, most)
full = full + taken * interval
redis.call('SET', KEYS[1], string.format('%.0f', full), 'PX', math.ceil((full - now) / 1000) + 1)
return { taken, there - taken, 0 }
