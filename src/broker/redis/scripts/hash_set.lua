-- Sets a field if the condition holds. Returns 1 (created), 0 (replaced), or the refusal.
-- KEYS: hash. ARGV: field, value, and the condition.

return refusal() or too_many_fields({ ARGV[1] }) or redis.call('HSET', KEYS[1], ARGV[1], ARGV[2])
