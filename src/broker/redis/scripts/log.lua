-- Prelude of every script that reads or writes the head of a topic's log. The rules are those of core/src/log.
--
-- A head is one string: "<epoch>-<last offset> <replication id>" for the newest epoch, then tokens from newer to older:
--   ~<epoch>-<offset>          streams that enter the epoch before this token from an older one may miss events after
--                              this position
--   ?<epoch>-<offset>/<epoch>  the same, for a loss that was found later: streams that entered the second epoch after
--                              the loss had been recorded there were told at that time
--   <epoch>-<last offset>      the next older epoch
--   ^<epoch>                   the newest epoch that was dropped from the history
--   =<epoch>-<offset>          the log was emptied on purpose up to this position
--   !<epoch>-<offset>          the final message: no other one may follow
--   &<epoch>-<offset>          the last message, if presence events follow it; always the last token
--   #<time>                    of a hash's log: the hash has fields, and expires at this time (ms), or never (0); always
--                              the last token
-- A malformed head counts as none. Epochs are microseconds since 1970: Lua's numbers are exact below 2^53.

local HEAD_PATTERN = '^(%d+)%-(%d+) (%x+)(.*)$'
local KEPT_EPOCHS = 32
-- Above this, Lua takes longer to join strings than Redis takes for a second PUBLISH.
local LARGE_BYTES = 4096
-- A log's bytes and age are checked with every so many events, and with large events.
local TRIM_EVERY = 16
-- Entries that are dropped for their age in one step, and entries that are read in one reply while trimming.
local MAX_DROPPED_FOR_AGE = 4 * TRIM_EVERY
local MAX_CHUNK = 64
local DAY = 24 * 3600 * 1000000

-- Fails unless the user may run this command. A script calls it before its first write for each command that it calls
-- later, since nothing may fail then.
local function require_permission(command, ...)
  if not redis.acl_check_cmd(command, ...) then
    error({ err = 'NOPERM the user has no permission to run ' .. command })
  end
end

-- tostring would print 1.79e+15.
local function whole(number)
  return string.format('%.0f', number)
end

local function id_text(id)
  return whole(id[1]) .. '-' .. whole(id[2])
end

-- The server's replication id, which names the server's history. It must be read in the step that uses it: an id from
-- an earlier step would hide a partial resync, or a failover and back.
local function server_replication_id()
  local info = redis.call('INFO', 'replication')
  local _, colon = string.find(info, '\nmaster_replid:', 1, true)
  return string.sub(info, colon + 1, colon + 40)
end

-- Announcements are hints and the log is the truth, so a PUBLISH that fails does not fail the script.
-- `notifications` is how many keyspace notifications of a hash the step has caused before.
local function announce(channel, id, event, notifications)
  local header = id .. ' ' .. #event .. (notifications and ' ' .. notifications or '') .. '\n'
  if #event > LARGE_BYTES then
    redis.pcall('PUBLISH', channel, header)
    redis.pcall('PUBLISH', channel, event)
  else
    redis.pcall('PUBLISH', channel, header .. event)
  end
end

local function parse(text)
  local epoch, last, replication_id, rest = string.match(text or '', HEAD_PATTERN)
  if not epoch then
    return nil
  end
  local epochs = { { number = tonumber(epoch), last = tonumber(last) } }
  local head = { replication_id = replication_id, epochs = epochs, dropped = 0 }
  for tag, first, second, third in string.gmatch(rest, ' ([~?^=!&#]?)(%d+)%-?(%d*)/?(%d*)') do
    first, second = tonumber(first), tonumber(second)
    if tag == '' then
      table.insert(epochs, { number = first, last = second })
    elseif tag == '~' then
      epochs[#epochs].lost_since = { first, second }
    elseif tag == '?' then
      epochs[#epochs].late = { since = { first, second }, entered = tonumber(third) }
    elseif tag == '=' then
      head.cleared = { first, second }
    elseif tag == '!' then
      head.finished = { first, second }
    elseif tag == '&' then
      head.last_message = { first, second }
    elseif tag == '#' then
      head.expires_at = first
    else
      head.dropped = first
    end
  end
  return head
end

local function render(head)
  local tokens = {}
  for index, epoch in ipairs(head.epochs) do
    table.insert(tokens, whole(epoch.number) .. '-' .. whole(epoch.last))
    if index == 1 then
      table.insert(tokens, head.replication_id)
    end
    if epoch.lost_since then
      table.insert(tokens, '~' .. id_text(epoch.lost_since))
    end
    if epoch.late then
      table.insert(tokens, '?' .. id_text(epoch.late.since) .. '/' .. whole(epoch.late.entered))
    end
  end
  if head.dropped > 0 then
    table.insert(tokens, '^' .. whole(head.dropped))
  end
  if head.cleared then
    table.insert(tokens, '=' .. id_text(head.cleared))
  end
  if head.finished then
    table.insert(tokens, '!' .. id_text(head.finished))
  end
  if head.last_message then
    table.insert(tokens, '&' .. id_text(head.last_message))
  end
  if head.expires_at then
    table.insert(tokens, '#' .. whole(head.expires_at))
  end
  return table.concat(tokens, ' ')
end

-- When a hash expires, in ms since 1970, or 0 if it does not; nil if it has no fields.
local function hash_expiry(key)
  local time = redis.call('PEXPIRETIME', key)
  return time > -2 and math.max(time, 0) or nil
end

-- Whether a topic with this stored head may ever have had a message.
local function has_messages(text)
  local _, last, _, rest = string.match(text or '', HEAD_PATTERN)
  return last and not (last == '0' and rest == '') and not string.find(rest, ' &%d+%-0$')
end

-- The id of the last event that was appended; the start of the history if there was none.
local function last_entry(head)
  for _, epoch in ipairs(head.epochs) do
    if epoch.last > 0 then
      return { epoch.number, epoch.last }
    end
  end
  return { head.epochs[#head.epochs].number, 0 }
end

-- Begins an epoch above `floor` and above all epochs of the history. `logs` are the keys of the log's streams.
local function begin_epoch(head, logs, replication_id, floor, random)
  local time = redis.call('TIME')
  local number = tonumber(time[1]) * 1000000 + tonumber(time[2])
  if head.epochs[1] then
    floor = math.max(floor, head.epochs[1].number)
  end
  if number <= floor then
    number = floor + 1 + random
  end
  head.replication_id = replication_id
  table.insert(head.epochs, 1, { number = number, last = 0 })
  if #head.epochs > KEPT_EPOCHS then
    local retained = math.huge
    for _, key in ipairs(logs) do
      local oldest = redis.call('XRANGE', key, '-', '+', 'COUNT', 1)[1]
      retained = math.min(retained, oldest and tonumber(string.match(oldest[1], '^%d+')) or math.huge)
    end
    while #head.epochs > KEPT_EPOCHS and head.epochs[#head.epochs].number < retained do
      head.dropped = table.remove(head.epochs).number
    end
  end
end

-- The earlier one of two positions; the second may be nil.
local function earlier(a, b)
  local is_second = b and (b[1] < a[1] or (b[1] == a[1] and b[2] < a[2]))
  return is_second and b or a
end

-- The oldest epoch above a number.
local function first_above(head, number)
  local found
  for _, epoch in ipairs(head.epochs) do
    if epoch.number > number then
      found = epoch
    end
  end
  return found
end

-- Records a loss on the first epoch above it and, for streams that have entered that epoch already, on the newest
-- epoch.
local function record_loss(head, since)
  local newest, first = head.epochs[1], first_above(head, since[1])
  first.lost_since = earlier(since, first.lost_since)
  if first ~= newest then
    local late = newest.late or { since = since, entered = first.number }
    newest.late = { since = earlier(since, late.since), entered = math.max(late.entered, first.number) }
  end
end

-- Checks a head, and begins a new epoch if the head is missing, malformed or another server's, or if it conflicts with
-- `watermarks`: the highest ids, by epoch, that the replica has appended or seen. Returns the head, and whether it has
-- changed.
local function ensure_epoch(text, logs, replication_id, watermarks, random)
  local head, has_changed = parse(text), false
  local floor = 0
  for _, id in ipairs(watermarks) do
    floor = math.max(floor, id[1])
  end
  if not head then
    -- Entries that no head covers can never be delivered. XTRIM runs only if there are any: once a script has written,
    -- Redis no longer refuses its writes for lack of memory or replicas, and XADD has to be refused then.
    for _, key in ipairs(logs) do
      if redis.call('XLEN', key) > 0 then
        redis.call('XTRIM', key, 'MAXLEN', 0)
      end
    end
    head = { epochs = {}, dropped = 0 }
    begin_epoch(head, logs, replication_id, floor, random)
    has_changed = true
  elseif head.replication_id ~= replication_id then
    begin_epoch(head, logs, replication_id, floor, random)
    has_changed = true
  end
  local ends = {}
  for _, epoch in ipairs(head.epochs) do
    ends[epoch.number] = epoch.last
  end
  local losses = {}
  for _, id in ipairs(watermarks) do
    local is_held = ends[id[1]] and id[2] <= ends[id[1]]
    if id[2] > 0 and id[1] > head.dropped and not is_held then
      local since = { id[1], ends[id[1]] or 0 }
      local first = first_above(head, id[1])
      -- If the first epoch above has recorded the loss, streams that come past it are told already.
      local recorded = first and first.lost_since
      if not recorded or earlier(recorded, since) == since then
        table.insert(losses, since)
      end
    end
  end
  -- No stream could go on from a position above the history.
  if not has_changed and (#losses > 0 or floor > head.epochs[1].number) then
    begin_epoch(head, logs, replication_id, floor, random)
    has_changed = true
  end
  for _, since in ipairs(losses) do
    record_loss(head, since)
  end
  return head, has_changed
end

-- The watermarks in ARGV from an index on.
local function watermarks_from(first)
  local ids = {}
  for index = first, #ARGV do
    local epoch, offset = string.match(ARGV[index], '^(%d+)%-(%d+)$')
    table.insert(ids, { tonumber(epoch), tonumber(offset) })
  end
  return ids
end

-- Begins an epoch above all ids of a stream of the log. It has ids above the head's if the head is older, or if another
-- client has written there. Entries above the head can't be delivered, so they count as lost.
local function begin_above_entries(head, logs, key, replication_id, random)
  local highest = 0
  local info = redis.call('XINFO', 'STREAM', key)
  for index = 1, #info, 2 do
    if info[index] == 'last-generated-id' then
      highest = tonumber(string.match(info[index + 1], '^%d+'))
    end
  end
  if highest > tonumber(redis.call('TIME')[1]) * 1000000 + DAY then
    -- Such an id is no time, and there may be no room for epochs above it.
    redis.call('UNLINK', key)
    highest = 0
  end
  local since = { head.epochs[1].number, head.epochs[1].last }
  begin_epoch(head, logs, replication_id, highest, random)
  record_loss(head, since)
end

-- Drops entries that are too old, and then the oldest ones until the log takes at most `max_bytes`. The functions are
-- nested, since most appends do not trim, and to create functions takes time.
local function trim(log_key, max_bytes, oldest_time)
  local function log_length()
    local length = redis.pcall('XLEN', log_key)
    return type(length) == 'number' and length or 0
  end

  -- Drops the oldest entries while `is_due` is true for their events, and at most `most` entries.
  local function drop_oldest(most, is_due)
    local length, dropped, chunk = log_length(), 0, 1
    while dropped < most do
      local oldest = redis.pcall('XRANGE', log_key, '-', '+', 'COUNT', math.min(chunk, most - dropped))
      local count = 0
      while oldest[count + 1] and is_due(oldest[count + 1][2][2] or '') do
        count = count + 1
      end
      if count == 0 then
        return
      end
      dropped = dropped + count
      redis.pcall('XTRIM', log_key, 'MAXLEN', '=', length - dropped)
      if count < #oldest then
        return
      end
      chunk = math.min(chunk * 4, MAX_CHUNK)
    end
  end

  -- Counts all entries: by default Redis looks only at the oldest five nodes, which may be nothing like the others.
  local function memory_usage()
    local bytes = redis.pcall('MEMORY', 'USAGE', log_key, 'SAMPLES', 0)
    return type(bytes) == 'number' and bytes or 0
  end

  drop_oldest(MAX_DROPPED_FOR_AGE, function(event)
    local time = string.match(event, '^{"published_at":"([^"]+)"')
    return time and time < oldest_time
  end)

  local bytes, length = memory_usage(), log_length()
  -- A log takes far more than its limit only after the limit was lowered, or because of one large event.
  while bytes > 2 * max_bytes and length > 1 do
    length = math.floor(length / 2)
    redis.pcall('XTRIM', log_key, 'MAXLEN', '=', length)
    bytes = memory_usage()
  end
  -- Redis frees a node of a stream with the node's last entry, so dropped entries may still take memory. Two rounds are
  -- enough for Redis's default size of nodes. For larger nodes, more rounds would drop all entries but the last.
  for _ = 1, 2 do
    if bytes <= max_bytes or length <= 1 then
      return
    end
    local excess = bytes - max_bytes
    drop_oldest(length - 1, function(event)
      local is_due = excess > 0
      excess = excess - #event
      return is_due
    end)
    bytes, length = memory_usage(), log_length()
  end
end

local function add_entry(log, id, event)
  -- Trimming by whole nodes takes a tenth of the time. Only a log that keeps no entries is trimmed exactly.
  local exactness = log.max_entries == '0' and '=' or '~'
  return redis.pcall('XADD', log.key, 'MAXLEN', exactness, log.max_entries, id, 'e', event)
end

-- Appends an event to a topic's log, and announces it. Returns the event's id, or nil if nothing was stored, and then
-- 'finished' if the log takes no message, or Redis's error unless a condition does not hold. `log` has these fields:
--   head_key, channel            the topic's head and channel
--   logs                         the streams of messages and of presence events. Each has its own limits, so that no
--                                kind displaces the other
--   key                          the one of them that the event goes to
--   is_presence                  whether the event is about presence
--   is_final                     whether the log takes no message after the event
--   max_entries, max_bytes       what the log keeps, as text and as a number
--   oldest_time                  events that were published before this time are dropped
--   ttl, head_ttl                lifetimes of log and head, in milliseconds
--   quiet_ttl                    lifetime of presence events in a room without messages
--   hash                         the key of the hash whose log it is. Its appends do not renew the head
--   expires_at                   when that hash expires now: see hash_expiry
--   notifications                how many keyspace notifications of that hash the step has caused since its last event
--   random                       added to a new epoch that can't be the time
--   first_watermark              the index of the first watermark in ARGV
--   holds                        whether the event may be appended to a log with this head; nil without a condition
local function append(log, event)
  -- Asked once for all events of a step: INFO takes longer than the rest of an append.
  log.replication_id = log.replication_id or server_replication_id()
  local text, replication_id = redis.call('GET', log.head_key), log.replication_id
  local epoch, last, owner, rest = string.match(text or '', HEAD_PATTERN)
  if rest and rest ~= '' and not log.is_presence and string.find(rest, ' !', 1, true) then
    return nil, 'finished'
  end

  -- In the common case neither the older epochs nor the clock are needed.
  local is_current = owner == replication_id
  for index = log.first_watermark, #ARGV do
    local known_epoch, offset = string.match(ARGV[index], '^(%d+)%-(%d+)$')
    is_current = is_current and known_epoch == epoch and tonumber(offset) <= tonumber(last)
  end
  local head
  if not is_current then
    head = ensure_epoch(text, log.logs, replication_id, watermarks_from(log.first_watermark), log.random)
    epoch, last, owner, rest = string.match(render(head), HEAD_PATTERN)
  end
  if log.holds then
    head = head or parse(text)
    if not log.holds(head) then
      return nil
    end
  end

  -- An event names the last message if presence events lie between: only that tells a reader without presence that it
  -- misses nothing where they were dropped.
  local last_message = string.match(rest, ' &(%d+%-%d+)$')
  if last_message then
    event = string.gsub(event, '}$', ',"last_message":"' .. last_message .. '"}')
  end

  -- XADD is the first write, so nothing was stored if it fails. After it nothing may fail.
  local offset = tonumber(last) + 1
  local id = epoch .. '-' .. whole(offset)
  local added = add_entry(log, id, event)
  if type(added) == 'table' and added.err and string.find(added.err, 'equal or smaller', 1, true) then
    head = head or parse(text)
    begin_above_entries(head, log.logs, log.key, replication_id, log.random)
    if log.holds then
      -- The entries count as lost, so no condition holds. The next one has to meet the new epoch.
      redis.call('SET', log.head_key, render(head), 'PX', log.head_ttl)
      return nil
    end
    epoch, last, owner, rest = string.match(render(head), HEAD_PATTERN)
    offset = tonumber(last) + 1
    id = epoch .. '-' .. whole(offset)
    added = add_entry(log, id, event)
  end
  if type(added) == 'table' and added.err then
    return nil, added
  end

  -- Where the two kinds alternate, one of them may never come to a round offset.
  local is_due = offset % TRIM_EVERY == 0 or #event * 2 * TRIM_EVERY > log.max_bytes
  if log.max_entries ~= '0' and (is_due or (last_message ~= nil) ~= (log.is_presence == true)) then
    trim(log.key, log.max_bytes, log.oldest_time)
  end
  if log.is_presence and not last_message then
    rest = rest .. ' &' .. id_text(last_entry(head or parse(text)))
  elseif last_message and not log.is_presence then
    rest = string.gsub(rest, ' &.*$', '')
  end
  if log.is_final then
    rest = rest .. ' !' .. id
  end
  if log.hash then
    rest = string.gsub(rest, ' #%d+$', '') .. (log.expires_at and ' #' .. whole(log.expires_at) or '')
  end
  local new_text = id .. ' ' .. replication_id .. rest
  if log.is_presence and not has_messages(new_text) then
    -- What readers alone have made lives as long as readers alone have made it live.
    redis.pcall('PEXPIRE', log.key, log.quiet_ttl)
    if text then
      redis.call('SET', log.head_key, new_text, 'KEEPTTL')
    else
      redis.call('SET', log.head_key, new_text, 'PX', log.quiet_ttl)
    end
  else
    redis.pcall('PEXPIRE', log.key, log.ttl)
    if log.hash and text then
      redis.call('SET', log.head_key, new_text, 'KEEPTTL')
    else
      redis.call('SET', log.head_key, new_text, 'PX', log.head_ttl)
    end
  end
  announce(log.channel, id, event, log.notifications)
  return id
end
