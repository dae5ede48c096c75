#!lua flags=allow-oom
-- Stores a removal and announces it to all replicas, also while there is no memory left for other writes. Drops removals
-- that are over; a removal in force is never dropped for a new one. Returns the removal's id.
-- KEYS: removals, the times (ms) until which they are kept, by id. ARGV: removal, control channel, most removals to
-- keep, the keys' lifetime (ms), now (ms), the time (ms) until which the removal is kept.

-- Above the one that is added, so that the stored ones become fewer.
local MAX_DROPPED = 100

-- Checked here, since nothing may fail once something is written.
if not redis.acl_check_cmd('ZADD', KEYS[2], 0, '') then
  return redis.error_reply('NOPERM the user has no permission to run ZADD')
end
local dropped = redis.call('ZRANGEBYSCORE', KEYS[2], '-inf', '(' .. ARGV[5], 'LIMIT', 0, MAX_DROPPED)
if redis.call('XLEN', KEYS[1]) - #dropped >= tonumber(ARGV[3]) then
  return redis.error_reply('BUSY ' .. ARGV[3] .. ' removals are in force, and no more can be stored')
end
local id = redis.call('XADD', KEYS[1], '*', 'r', ARGV[1])
redis.call('ZADD', KEYS[2], ARGV[6], id)
-- The removal is stored, so what fails from here on does not fail the script.
if #dropped > 0 then
  redis.pcall('XDEL', KEYS[1], unpack(dropped))
  redis.pcall('ZREM', KEYS[2], unpack(dropped))
end
redis.pcall('PEXPIRE', KEYS[1], ARGV[4])
redis.pcall('PEXPIRE', KEYS[2], ARGV[4])
redis.pcall('PUBLISH', ARGV[2], 'removed')
return id
