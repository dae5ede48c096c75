-- Changes the members of a room, and removes members of dead processes. Once a stream has asked for presence events,
-- appends presence.join and presence.leave to the room's log. Returns an answer for each change: the session's
-- generation, or absent, name_taken or superseded; then 1 if members of dead processes are left, else 0.
-- KEYS: members, presence, head, log, log of presence events.
-- ARGV: process, lifetime of members and head (ms), random, room, room's channel, control channel, entries to keep,
-- bytes to keep, log's lifetime (ms), now (RFC 3339), time before which events are too old, 1 if a stream asks for
-- presence events, lifetime of all this in a room without messages (ms), number of dead processes, these processes,
-- number of changes, for each: join or leave, subscriber, generation or 0, owner, address or -, profile; watermarks…
--
-- A member is one text: "<generation> <since> <process> <owner> <address or -> <profile>". The presence key counts
-- members by process; its field "" says that a stream has asked for presence events.

local FIRST_PROCESS = 15
local FIELDS_PER_CHANGE = 6
local MAX_MEMBERS_PER_EVENT = 100
-- Members of dead processes that one step removes.
local MAX_STALE_PER_STEP = 1000
-- Even, since HSET takes pairs.
local MAX_ARGUMENTS = 1000

local own_process, head_ttl, now, quiet_ttl = ARGV[1], ARGV[2], ARGV[10], ARGV[13]
local is_dead = {}
for index = FIRST_PROCESS, FIRST_PROCESS + tonumber(ARGV[14]) - 1 do
  is_dead[ARGV[index]] = true
end
local first_change = FIRST_PROCESS + tonumber(ARGV[14]) + 1
local changes = tonumber(ARGV[first_change - 1])

local counts, is_watched = {}, false
local stored_counts = redis.call('HGETALL', KEYS[2])
for index = 1, #stored_counts, 2 do
  if stored_counts[index] == '' then
    is_watched = true
  else
    counts[stored_counts[index]] = tonumber(stored_counts[index + 1])
  end
end
local function total()
  local sum = 0
  for _, count in pairs(counts) do
    sum = sum + count
  end
  return sum
end
-- If the two keys disagree, a part of one was lost: the members that are left are counted.
local is_recounted = redis.call('HLEN', KEYS[1]) ~= total()
if is_recounted then
  for process in pairs(counts) do
    counts[process] = 0
  end
  local members = redis.call('HGETALL', KEYS[1])
  for index = 2, #members, 2 do
    local process = string.match(members[index], '^%d+ %S+ (%S+) ')
    if process then
      counts[process] = (counts[process] or 0) + 1
    end
  end
end
local starts_watch = ARGV[12] == '1' and not is_watched
is_watched = is_watched or starts_watch

local function parse_member(text)
  local generation, since, process, owner, address, profile =
    string.match(text or '', '^(%d+) (%S+) (%S+) (%S+) (%S+) (.*)$')
  return generation
    and {
      generation = tonumber(generation),
      since = since,
      process = process,
      owner = owner,
      address = address,
      profile = profile,
      text = text,
    }
end

-- The members that this step reads or changes, before and after it; false for no member. `order` makes the events'
-- order that of the changes.
local before, after, order, malformed = {}, {}, {}, {}
local function load_member(name, member)
  before[name], after[name] = member or false, member or false
  order[#order + 1] = name
end

local has_stale, has_more_stale = false, false
for process in pairs(counts) do
  has_stale = has_stale or is_dead[process]
end
if has_stale then
  local members, removed = redis.call('HGETALL', KEYS[1]), 0
  for index = 1, #members, 2 do
    local name, member = members[index], parse_member(members[index + 1])
    local is_stale = not member or is_dead[member.process]
    has_more_stale = has_more_stale or (is_stale and removed == MAX_STALE_PER_STEP)
    if is_stale and removed < MAX_STALE_PER_STEP then
      removed = removed + 1
      if member then
        load_member(name, member)
        after[name] = false
      else
        malformed[#malformed + 1] = name
      end
    end
  end
  for process in pairs(counts) do
    if is_dead[process] and not has_more_stale then
      counts[process] = 0
    end
  end
end

local time = redis.call('TIME')
local newest_generation = tonumber(time[1]) * 1000000 + tonumber(time[2])
local answers, superseded = {}, {}
for change = 1, changes do
  local index = first_change + (change - 1) * FIELDS_PER_CHANGE
  local name, generation, owner = ARGV[index + 1], tonumber(ARGV[index + 2]), ARGV[index + 3]
  local address, profile = ARGV[index + 4], ARGV[index + 5]
  if after[name] == nil then
    load_member(name, parse_member(redis.call('HGET', KEYS[1], name)))
  end
  local member = after[name]
  if ARGV[index] == 'leave' then
    local is_own = member and member.process == own_process and member.owner == owner
    if member and (member.generation == generation or (generation == 0 and is_own)) then
      after[name] = false
    end
    answers[change] = 'absent'
  elseif member and member.owner ~= owner then
    answers[change] = 'name_taken'
  elseif generation > 0 and member and member.generation > generation then
    answers[change] = 'superseded'
  else
    if generation == 0 then
      newest_generation = math.max(newest_generation + 1, member and member.generation + 1 or 0)
      generation = newest_generation
    end
    if member and member.process ~= own_process then
      superseded[#superseded + 1] = name .. ' ' .. whole(generation)
    end
    after[name] = {
      generation = generation,
      since = member and member.since or now,
      process = own_process,
      owner = owner,
      address = address,
      profile = profile,
    }
    answers[change] = whole(generation)
  end
end

local left, joined, written, deleted = {}, {}, {}, malformed
local function add_to_count(process, number)
  counts[process] = math.max(0, (counts[process] or 0) + number)
end
for _, name in ipairs(order) do
  local was, is = before[name], after[name]
  if was then
    add_to_count(was.process, -1)
  end
  if is then
    add_to_count(is.process, 1)
    local text =
      table.concat({ whole(is.generation), is.since, is.process, is.owner, is.address, is.profile }, ' ')
    if not was or was.text ~= text then
      written[#written + 1] = name
      written[#written + 1] = text
    end
    if not was or was.profile ~= is.profile then
      joined[#joined + 1] = is
    end
  elseif was then
    deleted[#deleted + 1] = name
    left[#left + 1] = was
  end
end

local events = {}
local function add_events(kind, members)
  local present = whole(total())
  for first = 1, #members, MAX_MEMBERS_PER_EVENT do
    local shown = {}
    for index = first, math.min(#members, first + MAX_MEMBERS_PER_EVENT - 1) do
      shown[#shown + 1] = '{' .. members[index].profile .. ',"since":"' .. members[index].since .. '"}'
    end
    events[#events + 1] = '{"published_at":"' .. now .. '","event":"presence.' .. kind .. '","data":{"members":['
      .. table.concat(shown, ',') .. '],"present":' .. present .. '}}'
  end
end
if is_watched then
  add_events('leave', left)
  add_events('join', joined)
end

if #written + #deleted > 0 or has_stale or starts_watch or is_recounted then
  for _, key in ipairs({ KEYS[1], KEYS[2] }) do
    require_permission('HSET', key, '', '')
    require_permission('HDEL', key, '')
    require_permission('PEXPIRE', key, head_ttl)
  end
end
if #events > 0 then
  require_permission('SET', KEYS[3], '')
  local log = {
    head_key = KEYS[3],
    logs = { KEYS[4], KEYS[5] },
    key = KEYS[5],
    is_presence = true,
    channel = ARGV[5],
    max_entries = ARGV[7],
    max_bytes = tonumber(ARGV[8]),
    oldest_time = ARGV[11],
    ttl = ARGV[9],
    head_ttl = head_ttl,
    quiet_ttl = quiet_ttl,
    random = tonumber(ARGV[3]),
    first_watermark = first_change + changes * FIELDS_PER_CHANGE,
  }
  for index, event in ipairs(events) do
    local id, failure = append(log, event)
    if not id then
      -- The first event is the step's first write, so nothing has changed if it fails.
      if index == 1 then
        return failure
      end
      break
    end
  end
end

local function run_in_chunks(command, key, arguments)
  for first = 1, #arguments, MAX_ARGUMENTS do
    redis.call(command, key, unpack(arguments, first, math.min(#arguments, first + MAX_ARGUMENTS - 1)))
  end
end
run_in_chunks('HSET', KEYS[1], written)
run_in_chunks('HDEL', KEYS[1], deleted)
if #written + #deleted > 0 or has_stale or starts_watch or is_recounted then
  for process, count in pairs(counts) do
    if count > 0 then
      redis.call('HSET', KEYS[2], process, count)
    else
      redis.call('HDEL', KEYS[2], process)
    end
  end
  if starts_watch then
    redis.call('HSET', KEYS[2], '', 1)
  end
  local ttl = has_messages(redis.call('GET', KEYS[3])) and head_ttl or quiet_ttl
  redis.call('PEXPIRE', KEYS[1], ttl)
  redis.call('PEXPIRE', KEYS[2], ttl)
end
for _, name in ipairs(superseded) do
  redis.pcall('PUBLISH', ARGV[6], 'superseded ' .. ARGV[4] .. ' ' .. name)
end
answers[#answers + 1] = has_more_stale and 1 or 0
return answers
