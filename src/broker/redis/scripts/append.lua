-- Appends an event to a topic's log and announces it. Returns {id, 0, random}; or {id, 1, random} if an earlier call
-- with the same idempotency key and content appended the event; or {'', 0, random} if that call had other content. The
-- random number shows that the answer is this call's: a connection that loses bytes can lose a whole answer.
-- KEYS: head, log, log of presence events, and optionally an idempotency key.
-- ARGV: event, channel, entries to keep, lifetimes of log and head (ms), random, idempotency key's lifetime (ms),
-- digest of the content, bytes to keep, time before which events are too old, watermarks…

-- Checked here, since nothing may fail once something is written.
for _, key in ipairs({ KEYS[1], KEYS[4] }) do
  require_permission('SET', key, '')
end
local max_bytes, oldest_time = tonumber(ARGV[9]), ARGV[10]
if not max_bytes or not oldest_time then
  return redis.error_reply('ERR bytes to keep and the time before which events are too old are missing')
end

if KEYS[4] then
  local stored = redis.call('GET', KEYS[4])
  if stored then
    local content, id = string.match(stored, '^(%S+) (%S+)$')
    if content ~= ARGV[8] then
      return { '', 0, ARGV[6] }
    end
    return { id, 1, ARGV[6] }
  end
end

local id, failure = append({
  head_key = KEYS[1],
  logs = { KEYS[2], KEYS[3] },
  key = KEYS[2],
  channel = ARGV[2],
  max_entries = ARGV[3],
  max_bytes = max_bytes,
  oldest_time = oldest_time,
  ttl = ARGV[4],
  head_ttl = ARGV[5],
  random = tonumber(ARGV[6]),
  first_watermark = 11,
}, ARGV[1])
if not id then
  return failure
end
if KEYS[4] then
  redis.call('SET', KEYS[4], ARGV[8] .. ' ' .. id, 'PX', ARGV[7])
end
return { id, 0, ARGV[6] }
