-- Changes who is in a room, and has members of replicas that are gone leave. Appends what changed in effect to the room's log, where
-- somebody has ever asked to see it. Returns for each change the stay's stamp, or gone, taken or superseded, and then 1 if there are
-- more that have to leave.
-- KEYS: members, attendance, head, log. ARGV: replica, members' and head's lifetime (ms), random, room, room's channel, channel
-- of control, entries to keep, log's lifetime (ms), now (RFC 3339), 1 if somebody asks to see, how many replicas are gone, these, how
-- many changes, for each: enter or leave, subscriber, stamp or 0, owner, address or -, card; known ids…
--
-- A member is one text: "<stamp> <since> <replica> <owner> <address or -> <card>". Attendance counts them by replica; its field "" says that
-- somebody has asked to see.

local FIRST_REPLICA = 12
local FIELDS = 6
-- Members that one entry of the log names.
local MOST_NAMED = 100
-- Members of replicas that are gone, of one step.
local MOST_SWEPT = 1000
local BATCH = 1000

local replica, lifetime, now_text = ARGV[1], ARGV[2], ARGV[9]
local missing = {}
for place = FIRST_REPLICA, FIRST_REPLICA + tonumber(ARGV[11]) - 1 do
  missing[ARGV[place]] = true
end
local first_change = FIRST_REPLICA + tonumber(ARGV[11]) + 1
local changes = tonumber(ARGV[first_change - 1])
local first_known = first_change + changes * FIELDS

local counts, watched = {}, false
local flat = redis.call('HGETALL', KEYS[2])
for place = 1, #flat, 2 do
  if flat[place] == '' then
    watched = true
  else
    counts[flat[place]] = tonumber(flat[place + 1])
  end
end
-- Part of it is lost, then; what is left is counted.
local total = 0
for _, number in pairs(counts) do
  total = total + number
end
local recounts = redis.call('HLEN', KEYS[1]) ~= total
if recounts then
  local before = counts
  counts = {}
  for of in pairs(before) do
    counts[of] = 0
  end
  local all = redis.call('HGETALL', KEYS[1])
  for place = 2, #all, 2 do
    local of = string.match(all[place], '^%d+ %S+ (%S+) ')
    if of then
      counts[of] = (counts[of] or 0) + 1
    end
  end
end
local begins_watch = ARGV[10] == '1' and not watched
watched = watched or begins_watch

local function read(text)
  local stamp, since, of, owner, address, card = string.match(text or '', '^(%d+) (%S+) (%S+) (%S+) (%S+) (.*)$')
  return stamp
    and { stamp = tonumber(stamp), since = since, replica = of, owner = owner, address = address, card = card, text = text }
end

local before, now, order, junk = {}, {}, {}, {}
local function note(name, member)
  before[name], now[name] = member or false, member or false
  order[#order + 1] = name
end

local ghosts, more = false, false
for of in pairs(counts) do
  ghosts = ghosts or missing[of]
end
if ghosts then
  local all, swept = redis.call('HGETALL', KEYS[1]), 0
  for place = 1, #all, 2 do
    local name, found = all[place], read(all[place + 1])
    local is_ghost = not found or missing[found.replica]
    more = more or (is_ghost and swept == MOST_SWEPT)
    if is_ghost and swept < MOST_SWEPT then
      swept = swept + 1
      if found then
        note(name, found)
        now[name] = false
      else
        junk[#junk + 1] = name
      end
    end
  end
  for of in pairs(counts) do
    if missing[of] and not more then
      counts[of] = 0
    end
  end
end

local time = redis.call('TIME')
local stamp = tonumber(time[1]) * 1000000 + tonumber(time[2])
local answers, superseded = {}, {}
for change = 1, changes do
  local place = first_change + (change - 1) * FIELDS
  local name, given, owner = ARGV[place + 1], tonumber(ARGV[place + 2]), ARGV[place + 3]
  local address, card = ARGV[place + 4], ARGV[place + 5]
  if now[name] == nil then
    note(name, read(redis.call('HGET', KEYS[1], name)))
  end
  local present = now[name]
  if ARGV[place] == 'leave' then
    if present and (present.stamp == given or (given == 0 and present.replica == replica and present.owner == owner)) then
      now[name] = false
    end
    answers[change] = 'gone'
  elseif present and present.owner ~= owner then
    answers[change] = 'taken'
  elseif given > 0 and present and present.stamp > given then
    answers[change] = 'superseded'
  else
    if given == 0 then
      stamp = math.max(stamp + 1, present and present.stamp + 1 or 0)
      given = stamp
    end
    if present and present.replica ~= replica then
      superseded[#superseded + 1] = name .. ' ' .. whole(given)
    end
    local since = present and present.since or now_text
    now[name] = { stamp = given, since = since, replica = replica, owner = owner, address = address, card = card }
    answers[change] = whole(given)
  end
end

local left, joined, written, gone = {}, {}, {}, junk
local function count(of, by)
  counts[of] = math.max(0, (counts[of] or 0) + by)
end
for _, name in ipairs(order) do
  local was, is = before[name], now[name]
  if was then
    count(was.replica, -1)
  end
  if is then
    count(is.replica, 1)
    local text = table.concat({ whole(is.stamp), is.since, is.replica, is.owner, is.address, is.card }, ' ')
    if not was or was.text ~= text then
      written[#written + 1] = name
      written[#written + 1] = text
    end
    if not was or was.card ~= is.card then
      joined[#joined + 1] = is
    end
  elseif was then
    gone[#gone + 1] = name
    left[#left + 1] = was
  end
end

local events = {}
local function tell(kind, members)
  local total = 0
  for _, number in pairs(counts) do
    total = total + number
  end
  for first = 1, #members, MOST_NAMED do
    local named = {}
    for place = first, math.min(#members, first + MOST_NAMED - 1) do
      named[#named + 1] = '{' .. members[place].card .. ',"since":"' .. members[place].since .. '"}'
    end
    events[#events + 1] = '{"published_at":"' .. now_text .. '","event":"presence.' .. kind .. '","data":{"members":['
      .. table.concat(named, ',') .. '],"present":' .. whole(total) .. '}}'
  end
end
if watched then
  tell('leave', left)
  tell('join', joined)
end

if #events > 0 then
  local head = vouch(redis.call('GET', KEYS[3]), KEYS[4], server_mark(), ids_from(first_known), tonumber(ARGV[3]))
  local epoch = head.epochs[1]
  local exactness = ARGV[7] == '0' and '=' or '~'
  for place, event in ipairs(events) do
    local id = id_text({ epoch.number, epoch.last + 1 })
    local added = redis.pcall('XADD', KEYS[4], 'MAXLEN', exactness, ARGV[7], id, 'e', event)
    if type(added) == 'table' and added.err then
      -- The first write: nothing has changed if it fails. What is wrong then with the log, the next publish mends.
      if place == 1 then
        return added
      end
      break
    end
    epoch.last = epoch.last + 1
    announce(ARGV[5], id, event)
  end
  redis.pcall('PEXPIRE', KEYS[4], ARGV[8])
  redis.call('SET', KEYS[3], render(head), 'PX', lifetime)
end

local function in_batches(command, key, words)
  for first = 1, #words, BATCH do
    redis.call(command, key, unpack(words, first, math.min(#words, first + BATCH - 1)))
  end
end
in_batches('HSET', KEYS[1], written)
in_batches('HDEL', KEYS[1], gone)
if #written + #gone > 0 or ghosts or begins_watch or recounts then
  for of, number in pairs(counts) do
    if number > 0 then
      redis.call('HSET', KEYS[2], of, number)
    else
      redis.call('HDEL', KEYS[2], of)
    end
  end
  if begins_watch then
    redis.call('HSET', KEYS[2], '', 1)
  end
  redis.call('PEXPIRE', KEYS[1], lifetime)
  redis.call('PEXPIRE', KEYS[2], lifetime)
end
for _, name in ipairs(superseded) do
  redis.pcall('PUBLISH', ARGV[6], 'superseded ' .. ARGV[4] .. ' ' .. name)
end
answers[#answers + 1] = more and 1 or 0
return answers
