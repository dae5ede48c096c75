-- Appends an event to a room's log and announces it. Returns {id, 1 if an earlier call with the same key appended it},
-- or nil if that call had other content.
-- KEYS: head, log, and with an idempotency key its own. ARGV: event, channel, entries to keep, log's and head's lifetime
-- (ms), random, idempotency key's lifetime (ms), digest of the content, bytes to keep, time before which events are too
-- old, known ids…

local FIRST_KNOWN = 11
-- Above this, Lua pays more for joining strings than Redis does for a second PUBLISH.
local LARGE_BYTES = 4096
local DAY = 24 * 3600 * 1000000
-- What a log weighs and how old it is, is looked at with every so many events, and with large ones.
local WEIGH_EVERY = 16
-- Old entries that are dropped at a time.
local OLD_ENTRIES = 4 * WEIGH_EVERY

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

local function drop_old()
  local first = redis.pcall('XRANGE', KEYS[2], '-', '+', 'COUNT', 1)
  local count = 1
  while #first > 0 do
    for place, entry in ipairs(first) do
      local time = string.match(entry[2][2] or '', '^{"published_at":"([^"]+)"')
      if not time or time >= too_old then
        return place > 1 and redis.pcall('XTRIM', KEYS[2], 'MINID', '=', entry[1])
      end
    end
    if count > OLD_ENTRIES then
      return redis.pcall('XTRIM', KEYS[2], 'MINID', '=', first[#first][1])
    end
    count = count * 4
    first = redis.pcall('XRANGE', KEYS[2], '-', '+', 'COUNT', count)
  end
end

local function drop_weight()
  local length = redis.call('XLEN', KEYS[2])
  while length > 1 do
    local weight = redis.pcall('MEMORY', 'USAGE', KEYS[2])
    if type(weight) ~= 'number' or weight <= heaviest then
      return
    end
    -- Where the large ones are the newest, that is not enough at once.
    length = math.max(math.floor(length * heaviest / weight), 1)
    redis.pcall('XTRIM', KEYS[2], 'MAXLEN', '=', length)
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

-- A hint only, so its failure is nobody's: the log is the truth.
local header = id .. ' ' .. #event .. '\n'
if #event > LARGE_BYTES then
  redis.pcall('PUBLISH', channel, header)
  redis.pcall('PUBLISH', channel, event)
else
  redis.pcall('PUBLISH', channel, header .. event)
end
return { id, 0 }
