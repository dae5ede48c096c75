-- Deletes a hash. Returns 1, or 0 if there was none. Fails for a key of another type.
-- KEYS: hash.

if redis.call('HLEN', KEYS[1]) == 0 then
  return 0
end
-- UNLINK frees the memory in the background. DEL of a hash that other programs made large would take seconds.
return redis.call('UNLINK', KEYS[1])
