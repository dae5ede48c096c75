-- Prelude of hash_write.lua for a hash that nobody watches: it has no log. Returns {watched}, and changes nothing, if it
-- has one.
-- KEYS: hash, head, refresh key, and optionally an idempotency key. ARGV: the words of the write.

if redis.call('EXISTS', KEYS[2]) == 1 then
  return { 'watched' }
end

local WORDS, REFRESH, ONCE, LOG = ARGV, KEYS[3], KEYS[4], nil
local LIFETIME = redis.call('GET', REFRESH)

