-- Prelude of every script that reads or writes a room's head; the rules are those of src/follow.
--
-- A head is one string: "<epoch>-<last offset> <mark>", then tokens about the rest of the chain, newest epoch first:
--   ~<epoch>-<offset>          whoever enters the epoch named last may have missed what came after this position
--   ?<epoch>-<offset>/<epoch>  the same, but whoever entered the second epoch when that was marked has been told there
--   <epoch>-<last offset>      the next older epoch
--   ^<epoch>                   the newest epoch that was cut from the chain
--   =<epoch>-<offset>          up to there the log was emptied on purpose
-- A junk head counts as none. Epochs are microseconds, exact in Lua's numbers below 2^53.

local KEPT_EPOCHS = 32
-- Above this, Lua pays more for joining strings than Redis does for a second PUBLISH.
local LARGE_BYTES = 4096

-- tostring would print 1.79e+15.
local function whole(number)
  return string.format('%.0f', number)
end

local function id_text(id)
  return whole(id[1]) .. '-' .. whole(id[2])
end

-- Which server's history this is. Never passed in or cached: only read in the same step does it survive a
-- partial resync or a failover and back.
local function server_mark()
  local info = redis.call('INFO', 'replication')
  local _, at = string.find(info, '\nmaster_replid:', 1, true)
  return string.sub(info, at + 1, at + 40)
end

-- A hint only, so its failure is nobody's: the log is the truth.
local function announce(channel, id, event)
  local header = id .. ' ' .. #event .. '\n'
  if #event > LARGE_BYTES then
    redis.pcall('PUBLISH', channel, header)
    redis.pcall('PUBLISH', channel, event)
  else
    redis.pcall('PUBLISH', channel, header .. event)
  end
end

local function parse(text)
  local epoch, last, mark, rest = string.match(text or '', '^(%d+)%-(%d+) (%x+)(.*)$')
  if not epoch then
    return nil
  end
  local head = { mark = mark, epochs = { { number = tonumber(epoch), last = tonumber(last) } }, cut = 0 }
  for tag, first, second, third in string.gmatch(rest, ' ([~?^=]?)(%d+)%-?(%d*)/?(%d*)') do
    first, second = tonumber(first), tonumber(second)
    if tag == '' then
      table.insert(head.epochs, { number = first, last = second })
    elseif tag == '~' then
      head.epochs[#head.epochs].since = { first, second }
    elseif tag == '?' then
      head.epochs[#head.epochs].late = { since = { first, second }, entered = tonumber(third) }
    elseif tag == '=' then
      head.cleared = { first, second }
    else
      head.cut = first
    end
  end
  return head
end

local function render(head)
  local parts = {}
  for place, epoch in ipairs(head.epochs) do
    table.insert(parts, whole(epoch.number) .. '-' .. whole(epoch.last))
    if place == 1 then
      table.insert(parts, head.mark)
    end
    if epoch.since then
      table.insert(parts, '~' .. id_text(epoch.since))
    end
    if epoch.late then
      table.insert(parts, '?' .. id_text(epoch.late.since) .. '/' .. whole(epoch.late.entered))
    end
  end
  if head.cut > 0 then
    table.insert(parts, '^' .. whole(head.cut))
  end
  if head.cleared then
    table.insert(parts, '=' .. id_text(head.cleared))
  end
  return table.concat(parts, ' ')
end

-- Begins an epoch above `floor` and above every epoch of the chain.
local function begin(head, log, mark, floor, random)
  local time = redis.call('TIME')
  local number = tonumber(time[1]) * 1000000 + tonumber(time[2])
  if head.epochs[1] then
    floor = math.max(floor, head.epochs[1].number)
  end
  if number <= floor then
    number = floor + 1 + random
  end
  head.mark = mark
  table.insert(head.epochs, 1, { number = number, last = 0 })
  if #head.epochs > KEPT_EPOCHS then
    local oldest = redis.call('XRANGE', log, '-', '+', 'COUNT', 1)[1]
    local retained = oldest and tonumber(string.match(oldest[1], '^%d+')) or math.huge
    while #head.epochs > KEPT_EPOCHS and head.epochs[#head.epochs].number < retained do
      head.cut = table.remove(head.epochs).number
    end
  end
end

local function earlier(a, b)
  return a[1] < b[1] or (a[1] == b[1] and a[2] < b[2])
end

local function min(a, b)
  return b and earlier(b, a) and b or a
end

-- The first epoch above a number.
local function first_above(head, number)
  local found
  for _, epoch in ipairs(head.epochs) do
    if epoch.number > number then
      found = epoch
    end
  end
  return found
end

-- Marks a loss on the first epoch above it, and, for those who have entered that one already, on the newest.
local function mark_loss(head, since)
  local newest, first = head.epochs[1], first_above(head, since[1])
  first.since = min(since, first.since)
  if first ~= newest then
    local late = newest.late or { since = since, entered = first.number }
    newest.late = { since = min(since, late.since), entered = math.max(late.entered, first.number) }
  end
end

-- The head that this step may use, and whether it has changed. `known` are ids that the replica appended or saw.
local function vouch(text, log, mark, known, random)
  local head, changed = parse(text), false
  local floor = 0
  for _, id in ipairs(known) do
    floor = math.max(floor, id[1])
  end
  if not head then
    -- Entries that no head vouches for can never be told to anyone. Only where there are some: once a script has
    -- written, Redis lets it go on for lack of memory or replicas, and XADD would no longer be refused.
    if redis.call('XLEN', log) > 0 then
      redis.call('XTRIM', log, 'MAXLEN', 0)
    end
    head = { epochs = {}, cut = 0 }
    begin(head, log, mark, floor, random)
    changed = true
  elseif head.mark ~= mark then
    begin(head, log, mark, floor, random)
    changed = true
  end
  local last = {}
  for _, epoch in ipairs(head.epochs) do
    last[epoch.number] = epoch.last
  end
  local lost = {}
  for _, id in ipairs(known) do
    local on_chain = last[id[1]] and id[2] <= last[id[1]]
    if id[2] > 0 and id[1] > head.cut and not on_chain then
      local since = { id[1], last[id[1]] or 0 }
      local first = first_above(head, id[1])
      -- Else those who come past it are told so already.
      if not (first and first.since and not earlier(since, first.since)) then
        table.insert(lost, since)
      end
    end
  end
  -- No stream could go on from a position above the chain.
  if not changed and (#lost > 0 or floor > head.epochs[1].number) then
    begin(head, log, mark, floor, random)
    changed = true
  end
  for _, since in ipairs(lost) do
    mark_loss(head, since)
  end
  return head, changed
end

local function ids_from(position)
  local ids = {}
  for place = position, #ARGV do
    local epoch, offset = string.match(ARGV[place], '^(%d+)%-(%d+)$')
    table.insert(ids, { tonumber(epoch), tonumber(offset) })
  end
  return ids
end
