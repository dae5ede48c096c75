-- Checks the head of a topic's log, and begins a new epoch if it does not match. Returns 1 if it has made the head of a log
-- about which nothing is known, else 0.
-- KEYS: head, log, log of presence events, and of a hash's log the hash.
-- ARGV: head's lifetime (ms), random, a head that the replica can't parse or "", lifetime of the head of a log about
-- which nothing is known (ms), watermarks…

local text = redis.call('GET', KEYS[1])
-- This script may accept a head that the replica rejects. Without the comparison such a head would stay for ever.
local valid = text ~= ARGV[3] and text or nil
local logs, random = { KEYS[2], KEYS[3] }, tonumber(ARGV[2])
local head, has_changed = ensure_epoch(valid, logs, server_replication_id(), watermarks_from(5), random)
local is_unwritten = not text and not ARGV[5]
if has_changed then
  if KEYS[4] and not head.expires_at then
    head.expires_at = hash_expiry(KEYS[4])
  end
  redis.call('SET', KEYS[1], render(head), 'PX', is_unwritten and ARGV[4] or ARGV[1])
end
return is_unwritten and 1 or 0
