-- Removes a field if the condition holds. Returns 1 (gone), 0 (was absent), or {present value or false}.
-- KEYS: hash. ARGV: field, unused, condition (always, absent, present, matches), entity tags…

if ARGV[3] ~= 'always' then
  local present = redis.call('HGET', KEYS[1], ARGV[1])
  if not condition_holds(present) then
    return { present }
  end
end
return redis.call('HDEL', KEYS[1], ARGV[1])
