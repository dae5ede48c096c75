-- Stores a removal and announces it to all replicas. Removals that are over are dropped from the oldest end; a removal
-- in force is never dropped for a new one. Returns the removal's id.
-- KEYS: removals. ARGV: removal, control channel, most removals to keep, the key's lifetime (ms), now (ms), how long
-- (ms) a removal is kept at least, and after its ban has ended.

local MAX_DROPPED = 100

local now, kept_for = tonumber(ARGV[5]), tonumber(ARGV[6])
local dropped = {}
for _, entry in ipairs(redis.call('XRANGE', KEYS[1], '-', '+', 'COUNT', MAX_DROPPED)) do
  local is_json, removal = pcall(cjson.decode, entry[2][2])
  local until_time = is_json and type(removal) == 'table' and tonumber(removal['until']) or 0
  local stored_at = tonumber(string.match(entry[1], '^%d+'))
  if math.max(until_time, stored_at) + kept_for < now then
    dropped[#dropped + 1] = entry[1]
  end
end
if redis.call('XLEN', KEYS[1]) - #dropped >= tonumber(ARGV[3]) then
  return redis.error_reply('BUSY ' .. ARGV[3] .. ' removals are in force, and no more can be stored')
end
-- XADD is the first write: Redis refuses it if there is no memory left.
local id = redis.call('XADD', KEYS[1], '*', 'r', ARGV[1])
if #dropped > 0 then
  redis.call('XDEL', KEYS[1], unpack(dropped))
end
redis.call('PEXPIRE', KEYS[1], ARGV[4])
redis.pcall('PUBLISH', ARGV[2], 'removed')
return id
