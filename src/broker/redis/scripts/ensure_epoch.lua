-- Checks the head of a topic's log, and begins a new epoch if it does not match. Returns the head.
-- KEYS: head, log. ARGV: head's lifetime (ms), random, a head that the replica can't parse or "", watermarks…

local text = redis.call('GET', KEYS[1])
-- This script may accept a head that the replica rejects. Without the comparison such a head would stay for ever.
local valid = text ~= ARGV[3] and text or nil
local head, has_changed = ensure_epoch(valid, KEYS[2], server_replication_id(), watermarks_from(4), tonumber(ARGV[2]))
if has_changed then
  text = render(head)
  redis.call('SET', KEYS[1], text, 'PX', ARGV[1])
end
return text
