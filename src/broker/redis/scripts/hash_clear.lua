-- Removes a hash. Returns 1, or 0 where there was none. A key of another type is left alone.
-- KEYS: hash.

if redis.call('HLEN', KEYS[1]) == 0 then
  return 0
end
return redis.call('DEL', KEYS[1])
