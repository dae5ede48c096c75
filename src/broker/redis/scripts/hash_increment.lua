-- Adds to a field that holds a whole number. Returns the sum as text: Lua's numbers end at 2^53.
-- KEYS: hash. ARGV: field, by.

redis.call('HINCRBY', KEYS[1], ARGV[1], ARGV[2])
return redis.call('HGET', KEYS[1], ARGV[1])
