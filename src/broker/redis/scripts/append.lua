-- Appends an event to a topic's log and announces it. Returns {id, 0, random}; or {id, 1, random} if an earlier call
-- with the same idempotency key and content appended the event; or {'', 0, random} if that call had other content; or
-- {'', 1, random} if the condition does not hold; or {'', 2, random} if the log has its final message. The random number
-- shows that the answer is this call's: a connection that loses bytes can lose a whole answer.
-- An event that ends with ,"final":true} is the final message.
-- KEYS: head, log, log of presence events, with a condition the id of the data set, and optionally an idempotency key.
-- ARGV: event, channel, entries to keep, lifetimes of log and head (ms), random, idempotency key's lifetime (ms),
-- digest of the content, bytes to keep, time before which events are too old, optionally a condition, watermarks…
--
-- A condition is "after <position> <position>…". It holds if no message came after one of the positions, and none can be
-- missing there.

-- A position that was given out while the log had no head names the data set: its epoch is the id modulo this number.
local DATA_SETS = 16777216

local condition = string.match(ARGV[11] or '', '^after(.*)$')
local once = KEYS[condition and 5 or 4]
-- Checked here, since nothing may fail once something is written.
for _, key in ipairs({ KEYS[1], once }) do
  require_permission('SET', key, '')
end
local max_bytes, oldest_time = tonumber(ARGV[9]), ARGV[10]
if not max_bytes or not oldest_time then
  return redis.error_reply('ERR bytes to keep and the time before which events are too old are missing')
end

if once then
  local stored = redis.call('GET', once)
  if stored then
    local content, id = string.match(stored, '^(%S+) (%S+)$')
    if content ~= ARGV[8] then
      return { '', 0, ARGV[6] }
    end
    return { id, 1, ARGV[6] }
  end
end

-- Made only if it is needed, since to create functions takes time.
local holds
if condition then
  local data_set = tonumber(redis.call('GET', KEYS[4]))

  -- EpochHistory::resume_from: a position that was given out while the log had no head is the start of the history, if no
  -- event can be lost since.
  local function is_start(head, epoch, offset)
    local oldest = head.epochs[#head.epochs]
    return data_set
      and offset == 0
      and epoch < oldest.number
      and epoch % DATA_SETS == data_set % DATA_SETS
      and head.dropped == 0
      and not oldest.lost_since
      and oldest.number - epoch < tonumber(ARGV[5]) * 1000 / 2
  end

  -- Head::is_at_end.
  local function is_at_end(head, position)
    local has_events = false
    for _, epoch in ipairs(head.epochs) do
      if epoch.number == position[1] then
        has_events = has_events or position[2] < epoch.last
        local is_after_messages = head.last_message and earlier(head.last_message, position) == head.last_message
        return position[2] <= epoch.last and (not has_events or is_after_messages)
      end
      if epoch.number < position[1] or epoch.lost_since or epoch.late then
        return false
      end
      has_events = has_events or epoch.last > 0
    end
    return false
  end

  function holds(head)
    for epoch, offset in string.gmatch(condition, '(%d+)%-(%d+)') do
      local position = { tonumber(epoch), tonumber(offset) }
      if is_start(head, position[1], position[2]) then
        position = { head.epochs[#head.epochs].number, 0 }
      end
      if is_at_end(head, position) then
        return true
      end
    end
    return false
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
  first_watermark = condition and 12 or 11,
  holds = holds,
  is_final = string.sub(ARGV[1], -14) == ',"final":true}',
}, ARGV[1])
if not id then
  if failure == 'finished' then
    return { '', 2, ARGV[6] }
  end
  return failure or { '', 1, ARGV[6] }
end
if once then
  redis.call('SET', once, ARGV[8] .. ' ' .. id, 'PX', ARGV[7])
end
return { id, 0, ARGV[6] }
