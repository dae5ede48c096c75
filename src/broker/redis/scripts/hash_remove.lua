-- Removes a field if the condition holds. Returns 1 (gone), 0 (was absent), or what the condition met.
-- KEYS: hash. ARGV: field, unused, and the condition.

return refusal() or redis.call('HDEL', KEYS[1], ARGV[1])
