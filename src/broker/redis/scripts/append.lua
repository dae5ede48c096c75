-- Appends an event to a room's log and announces it. Returns {id, 1 if an earlier call with the same key appended it},
-- or nil if that call had other content.
-- KEYS: head, log, and with an idempotency key its own. ARGV: event, channel, entries to keep, log's and head's lifetime
-- (ms), random, idempotency key's lifetime (ms), digest of the content, bytes to keep, time before which events are too
-- old, known ids…

local FIRST_KNOWN = 11
local DAY = 24 * 3600 * 1000000
-- What a log weighs and how old it is, is looked at with every so many events, and with large ones.
local WEIGH_EVERY = 16
-- Old entries that are dropped at a time, and entries that are looked at in one reply.
local MOST_OLD = 4 * WEIGH_EVERY
local LARGEST_CHUNK = 64

-- Nothing may fail once something is written.
local heaviest, too_old = tonumber(ARGV[9]), ARGV[10]
if not heaviest or not too_old then
  return redis.error_reply('ERR bytes to keep and the time before which events are too old are missing')
end

if KEYS[3] then
  local before = redis.call('GET', KEYS[3])
  if before then
    local content, id = string.match(before, '^(%S+) (%S+)$')
    return content == ARGV[8] and { id, 1 }
  end
end

local event, channel = ARGV[1], ARGV[2]
local text = redis.call('GET', KEYS[1])
local mark = server_mark()
local epoch, last, owner, rest
if text then
  epoch, last, owner, rest = string.match(text, '^(%d+)%-(%d+) (%x+)(.*)$')
end

-- The common case touches neither the rest of the chain nor the clock.
local plain = owner == mark
for place = FIRST_KNOWN, #ARGV do
  local known, offset = string.match(ARGV[place], '^(%d+)%-(%d+)$')
  plain = plain and known == epoch and tonumber(offset) <= tonumber(last)
end
local function adopt(head)
  epoch, last, owner, rest = string.match(render(head), '^(%d+)%-(%d+) (%x+)(.*)$')
end
local head
if not plain then
  head = vouch(text, KEYS[2], mark, ids_from(FIRST_KNOWN), tonumber(ARGV[6]))
  adopt(head)
end

local function add()
  last = whole(tonumber(last) + 1)
  -- Trimming by whole nodes costs a tenth; only a log that keeps nothing is trimmed to the entry.
  local exactness = ARGV[3] == '0' and '=' or '~'
  return redis.pcall('XADD', KEYS[2], 'MAXLEN', exactness, ARGV[3], epoch .. '-' .. last, 'e', event)
end
-- XADD is the first write, so an error of it means that nothing was stored; after it nothing may fail.
local added = add()
if type(added) == 'table' and added.err and string.find(added.err, 'equal or smaller', 1, true) then
  -- The log has ids above the chain's: its head is older than it, or a stranger has written there. What lies above the
  -- chain can't be told to anyone, so it counts as lost.
  local info = redis.call('XINFO', 'STREAM', KEYS[2])
  local above = 0
  for place = 1, #info, 2 do
    if info[place] == 'last-generated-id' then
      above = tonumber(string.match(info[place + 1], '^%d+'))
    end
  end
  head = head or parse(text)
  local since = { head.epochs[1].number, head.epochs[1].last }
  if above > tonumber(redis.call('TIME')[1]) * 1000000 + DAY then
    -- Beyond any time, and no id could follow it.
    redis.call('DEL', KEYS[2])
    above = 0
  end
  begin(head, KEYS[2], mark, above, tonumber(ARGV[6]))
  mark_loss(head, since)
  adopt(head)
  added = add()
end
if type(added) == 'table' and added.err then
  return added
end
local id = epoch .. '-' .. last

-- Drops the oldest entries while their events are to go, up to so many.
local function drop_while(most, is_to_go)
  local length, gone, chunk = redis.call('XLEN', KEYS[2]), 0, 1
  while gone < most do
    local oldest = redis.pcall('XRANGE', KEYS[2], '-', '+', 'COUNT', math.min(chunk, most - gone))
    local count = 0
    while oldest[count + 1] and is_to_go(oldest[count + 1][2][2] or '') do
      count = count + 1
    end
    if count == 0 then
      return
    end
    gone = gone + count
    redis.pcall('XTRIM', KEYS[2], 'MAXLEN', '=', length - gone)
    if count < #oldest then
      return
    end
    chunk = math.min(chunk * 4, LARGEST_CHUNK)
  end
end

local function drop_old()
  drop_while(MOST_OLD, function(stored)
    local time = string.match(stored, '^{"published_at":"([^"]+)"')
    return time and time < too_old
  end)
end

-- All of it: by default only the oldest five nodes are weighed, which may be nothing like the rest.
local function weigh()
  local weight = redis.pcall('MEMORY', 'USAGE', KEYS[2], 'SAMPLES', 0)
  return type(weight) == 'number' and weight or 0
end

local function drop_weight()
  local weight, length = weigh(), redis.call('XLEN', KEYS[2])
  -- Far too heavy is only a log whose limit was lowered, or one event.
  while weight > 2 * heaviest and length > 1 do
    length = math.floor(length / 2)
    redis.pcall('XTRIM', KEYS[2], 'MAXLEN', '=', length)
    weight = weigh()
  end
  -- A node goes with its last entry, so what was dropped may weigh on. With Redis's own size of nodes twice is enough; with
  -- larger ones the log would be dropped to its last entry.
  for _ = 1, 2 do
    if weight <= heaviest or length <= 1 then
      return
    end
    local excess = weight - heaviest
    drop_while(length - 1, function(stored)
      local is_to_go = excess > 0
      excess = excess - #stored
      return is_to_go
    end)
    weight, length = weigh(), redis.call('XLEN', KEYS[2])
  end
end

if ARGV[3] ~= '0' and (tonumber(last) % WEIGH_EVERY == 0 or #event * 2 * WEIGH_EVERY > heaviest) then
  drop_old()
  drop_weight()
end
redis.pcall('PEXPIRE', KEYS[2], ARGV[4])
redis.call('SET', KEYS[1], id .. ' ' .. mark .. rest, 'PX', ARGV[5])
if KEYS[3] then
  redis.call('SET', KEYS[3], ARGV[8] .. ' ' .. id, 'PX', ARGV[7])
end

announce(channel, id, event)
return { id, 0 }
