-- Removes a field if the condition holds. Returns 1 (removed), 0 (was absent), or the refusal.
-- KEYS: hash. ARGV: field, unused, and the condition.

return refusal() or redis.call('HDEL', KEYS[1], ARGV[1])
