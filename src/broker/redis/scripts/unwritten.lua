-- The position of a log without a head, in parts: returns the server's time (us) and the data set's id, or false if the
-- log has a head. The id is made once; it has no expiry, and only vanishes with all data.
-- KEYS: head, id of the data set. ARGV: random.

if redis.call('GET', KEYS[1]) then
  return false
end
local time = redis.call('TIME')
local id = redis.call('GET', KEYS[2])
if not id then
  id = ARGV[1]
  redis.call('SET', KEYS[2], id)
end
return { tonumber(time[1]) * 1000000 + tonumber(time[2]), tonumber(id) }
