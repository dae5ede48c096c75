-- Adds to a field that holds a whole number. Returns the sum as text, since Lua's numbers are exact only below 2^53.
-- KEYS: hash. ARGV: field, increment.

redis.call('HINCRBY', KEYS[1], ARGV[1], ARGV[2])
return redis.call('HGET', KEYS[1], ARGV[1])
