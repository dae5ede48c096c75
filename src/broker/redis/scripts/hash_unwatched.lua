-- Prelude of hash_write.lua for a hash that nobody watches: it has no log. Returns {watched}, and changes nothing, if it
-- has one.
-- KEYS: hash, head, and optionally an idempotency key. ARGV: the words of the write.

if redis.call('EXISTS', KEYS[2]) == 1 then
  return { 'watched' }
end

local WORDS, ONCE, LOG = ARGV, KEYS[3], nil

