-- Adds to a field that holds a whole number. Returns the sum as text, since Lua's numbers are exact only below 2^53.
-- KEYS: hash. ARGV: field, increment.

-- Checked here, since nothing may fail once something is written.
if not redis.acl_check_cmd('HGET', KEYS[1], ARGV[1]) then
  return redis.error_reply('NOPERM the user has no permission to run HGET')
end
local refused = too_many_fields({ ARGV[1] })
if refused then
  return refused
end
redis.call('HINCRBY', KEYS[1], ARGV[1], ARGV[2])
return redis.call('HGET', KEYS[1], ARGV[1])
