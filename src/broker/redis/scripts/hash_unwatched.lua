-- Prelude of hash_write.lua for a hash that nobody watches: it has no log. Returns {watched}, and changes nothing, if it
-- has one.
-- KEYS: hash, head, refresh key, and optionally an idempotency key. ARGV: the words of the write.

local HEAD, LIFETIME = unpack(redis.call('MGET', KEYS[2], KEYS[3]))
if HEAD then
  return { 'watched' }
end

local WORDS, REFRESH, ONCE, LOG = ARGV, KEYS[3], KEYS[4], nil

