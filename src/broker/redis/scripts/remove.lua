-- Stores a removal, and has all replicas told. Those whose time has passed go from the oldest end; one that holds is never dropped for a
-- new one. Returns its id.
-- KEYS: removals. ARGV: the removal, channel of control, most that are remembered, lifetime (ms) after the last one, now (ms), how long (ms)
-- one that keeps nobody out is known.

local MOST_DROPPED = 100

local now, known = tonumber(ARGV[5]), tonumber(ARGV[6])
local dropped = {}
for _, entry in ipairs(redis.call('XRANGE', KEYS[1], '-', '+', 'COUNT', MOST_DROPPED)) do
  local read, removal = pcall(cjson.decode, entry[2][2])
  local until_when = read and type(removal) == 'table' and tonumber(removal['until']) or 0
  if math.max(until_when, tonumber(string.match(entry[1], '^%d+'))) + known < now then
    dropped[#dropped + 1] = entry[1]
  end
end
if redis.call('XLEN', KEYS[1]) - #dropped >= tonumber(ARGV[3]) then
  return redis.error_reply('BUSY ' .. ARGV[3] .. ' removals hold, and no more are remembered')
end
-- The first write, which Redis refuses where there is no room for it.
local id = redis.call('XADD', KEYS[1], '*', 'r', ARGV[1])
if #dropped > 0 then
  redis.call('XDEL', KEYS[1], unpack(dropped))
end
redis.call('PEXPIRE', KEYS[1], ARGV[4])
redis.pcall('PUBLISH', ARGV[2], 'removed')
return id
