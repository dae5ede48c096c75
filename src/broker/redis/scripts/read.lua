-- Reads a part of a topic's log in one step, as a reader of messages or of all events sees it. Returns the head or false,
-- the server's replication id, the number of entries, the oldest entry's id or false, the entries in the order of the
-- command, and 1 if more entries were asked for than their limit of bytes allows. The number may be too large if entries
-- are asked for.
-- KEYS: head, log, log of presence events. ARGV: XRANGE or XREVRANGE, from, to, most entries, bytes from which on there
-- are no more entries, 1 to leave out presence events.

local FIRST_CHUNK = 8
local MAX_CHUNK = 100

local command, from, to, max_entries, max_bytes =
  ARGV[1], ARGV[2], ARGV[3], tonumber(ARGV[4]), tonumber(ARGV[5])
local entries, bytes, is_cut_short, chunk = {}, 0, 0, FIRST_CHUNK

-- Whether the first id is below the second one.
local function is_below(first, second)
  local epoch, offset = string.match(first, '^(%d+)%-(%d+)$')
  local other_epoch, other_offset = string.match(second, '^(%d+)%-(%d+)$')
  if epoch == other_epoch then
    return tonumber(offset) < tonumber(other_offset)
  end
  return tonumber(epoch) < tonumber(other_epoch)
end

local function oldest_of(key)
  return redis.call('XRANGE', key, '-', '+', 'COUNT', 1)[1]
end

-- What is read of one stream, above a position if there is one.
local function source(key, is_empty, position)
  local source = { key = key, from = from, to = to, read = {}, index = 1, is_done = is_empty }
  local low = command == 'XRANGE' and 'from' or 'to'
  local bound = string.match(source[low], '%d+%-%d+')
  if position and not (bound and is_below(position, bound)) then
    source[low] = '(' .. position
  end
  return source
end

-- The next entry of a source. Nothing is read in vain from one without entries.
local function peek(source)
  if source.index > #source.read and not source.is_done then
    local wanted = math.min(chunk, max_entries - #entries)
    source.read, source.index = redis.call(command, source.key, source.from, source.to, 'COUNT', wanted), 1
    source.is_done = #source.read < wanted
    if #source.read > 0 then
      source.from = '(' .. source.read[#source.read][1]
    end
  end
  return source.read[source.index]
end

local text = redis.call('GET', KEYS[1])
local length = redis.call('XLEN', KEYS[2])
local presence_length = ARGV[6] == '1' and 0 or redis.call('XLEN', KEYS[3])
local first = length > 0 and oldest_of(KEYS[2])
local oldest, position = first and first[1], nil
if presence_length > 0 then
  -- The last message before all that is retained. If there was one, presence events before it belong to a part of the log
  -- that was dropped.
  if first then
    position = string.match(first[2][2] or '', ',"last_message":"(%d+%-%d+)"}$') or first[1]
  else
    position = string.match(text or '', ' &(%d+%-%d+)$')
  end
  if position and string.find(position, '%-0$') then
    position = nil
  elseif not position then
    presence_length = 0
  end
end
local messages, presence = source(KEYS[2], length == 0), source(KEYS[3], presence_length == 0, position)
if presence_length > 0 then
  local start = position and '(' .. position or '-'
  -- It takes time to count them.
  if position and max_entries == 0 then
    presence_length = presence_length - #redis.call('XRANGE', KEYS[3], '-', position)
  end
  local event = redis.call('XRANGE', KEYS[3], start, '+', 'COUNT', 1)[1]
  if event and (not oldest or is_below(event[1], oldest)) then
    oldest = event[1]
  end
end
while #entries < max_entries do
  local message, event = peek(messages), peek(presence)
  if not message and not event then
    break
  end
  if bytes >= max_bytes then
    is_cut_short = 1
    break
  end
  local takes_event = not message or (event and is_below(event[1], message[1]) == (command == 'XRANGE'))
  local taken = takes_event and presence or messages
  local entry = taken.read[taken.index]
  taken.index = taken.index + 1
  entries[#entries + 1] = entry
  -- The id, and the event beside its field's name.
  bytes = bytes + #entry[1] + #entry[2][2]
  -- As many as should fit, so that little is read in vain.
  chunk = math.floor((max_bytes - bytes) * #entries / bytes)
  chunk = math.max(1, math.min(chunk, MAX_CHUNK))
end
return { text, server_replication_id(), length + presence_length, oldest, entries, is_cut_short }
