-- Prelude of hash_write.lua for a hash that nobody watches: it has no log. Returns {watched}, and changes nothing, if it
-- has one.
-- KEYS: hash, head, refresh key, and optionally an idempotency key. ARGV: the words of the write.

local WORDS, REFRESH, ONCE, LOG, LIFETIME = ARGV, KEYS[3], KEYS[4], nil, nil
-- Most hashes have neither key, and each call takes Redis a tenth of the write's time.
if redis.call('EXISTS', KEYS[2], REFRESH) > 0 then
  if redis.call('EXISTS', KEYS[2]) == 1 then
    return { 'watched' }
  end
  LIFETIME = redis.call('GET', REFRESH)
end

