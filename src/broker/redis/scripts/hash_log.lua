-- Prelude, behind log.lua, of scripts that change a watched hash: each change becomes an entry of its log, in the form of
-- core/src/names/hash_change.rs.
-- KEYS: hash, head, log, and optionally an idempotency key.
-- ARGV: number of words, words…, first line of each entry, channel, entries to keep, bytes to keep, time before which
-- entries are too old, lifetimes of log and head (ms), random, watermarks…

local WORDS, ONCE = {}, KEYS[4]
for index = 1, tonumber(ARGV[1]) do
  WORDS[index] = ARGV[index + 1]
end

local first = #WORDS + 2
local HEADER = ARGV[first]
local hash_log = {
  hash = KEYS[1],
  head_key = KEYS[2],
  logs = { KEYS[3] },
  key = KEYS[3],
  channel = ARGV[first + 1],
  max_entries = ARGV[first + 2],
  max_bytes = tonumber(ARGV[first + 3]),
  oldest_time = ARGV[first + 4],
  ttl = ARGV[first + 5],
  head_ttl = ARGV[first + 6],
  random = tonumber(ARGV[first + 7]),
  first_watermark = first + 8,
}
if not hash_log.random then
  return redis.error_reply('ERR arguments about the log are missing')
end
require_permission('SET', KEYS[2], '')
require_permission('XADD', KEYS[3], '*', 'e', '')
require_permission('HLEN', KEYS[1])
require_permission('PEXPIRETIME', KEYS[1])

-- Read before the first write, since it may fail.
hash_log.replication_id = server_replication_id()

-- Returns nil, or Redis's error if nothing was stored. Without the entry, watchers would take what they have for the state
-- of the hash; without a head, they read it again.
local function append_change(header, kind, count, parts, notifications)
  hash_log.notifications = notifications
  hash_log.expires_at = hash_expiry(KEYS[1])
  local line = '\n' .. kind .. ' ' .. whole(hash_log.expires_at or 0) .. ' ' .. count .. '\n'
  local id, failure = append(hash_log, header .. line .. table.concat(parts))
  if not id then
    redis.pcall('UNLINK', KEYS[2])
    return failure
  end
end

-- `fields` has names and values by turns. The step has set each by a command of its own, unless it `is_external`.
local function append_set(fields, is_external)
  local parts = {}
  for index = 1, #fields, 2 do
    local field, value = fields[index], fields[index + 1]
    parts[#parts + 1] = #field .. ' ' .. #value .. '\n' .. field .. value
  end
  return #parts > 0 and append_change(HEADER, 'set', #parts, parts, is_external and 0 or #parts) or nil
end

local function append_remove(fields, is_external)
  local parts = {}
  for index, field in ipairs(fields) do
    parts[index] = #field .. '\n' .. field
  end
  -- The last field is told twice: as removed, and as the end of the key.
  local notifications = #parts + (hash_expiry(KEYS[1]) and 0 or 1)
  return #parts > 0 and append_change(HEADER, 'remove', #parts, parts, is_external and 0 or notifications) or nil
end

local function append_clear(reason)
  return append_change(HEADER, 'clear', 1, { reason }, 1)
end

-- Notices that the hash had fields after the last step and has none now.
local function begin_changes()
  local text = redis.call('GET', KEYS[2])
  local expiry = text and string.match(text, ' #(%d+)$')
  if not expiry or hash_expiry(KEYS[1]) then
    return nil
  end
  local time = redis.call('TIME')
  local now = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
  local has_expired = expiry ~= '0' and tonumber(expiry) <= now
  -- Nobody is known to have done it.
  local header = string.match(HEADER, '^[^,}]*') .. '}'
  return append_change(header, 'clear', 1, { has_expired and 'expired' or 'external' }, 0)
end

