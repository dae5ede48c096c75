-- Prelude, behind log.lua, of scripts that change a watched hash: each change becomes an entry of its log, in the form of
-- core/src/names/hash_change.rs.
-- KEYS: hash, head, log, refresh key, and optionally an idempotency key.
-- ARGV: number of words, words…, first line of each entry, channel, entries to keep, bytes to keep, time before which
-- entries are too old, lifetimes of log and head (ms), random, watermarks…

local WORDS, REFRESH, ONCE = {}, KEYS[4], KEYS[5]
local LIFETIME = redis.call('GET', REFRESH)
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

-- Read before the first write, since it may fail.
hash_log.replication_id = server_replication_id()

-- `notifications`: how many the step has caused that belong to no change of a field.
local LOG = { notifications = 0 }

-- Returns nil, or Redis's error if nothing was stored. Without the entry, watchers would take what they have for the state
-- of the hash; without a head, they read it again. `expiry` is that of the hash now, and `notifications` how many keyspace
-- notifications the change has caused.
function LOG.append(header, kind, parts, expiry, notifications)
  hash_log.expires_at, hash_log.notifications = expiry, notifications + LOG.notifications
  LOG.notifications = 0
  local line = '\n' .. kind .. ' ' .. whole(expiry or 0) .. ' ' .. #parts .. '\n'
  local id, failure = append(hash_log, header .. line .. table.concat(parts))
  if not id then
    redis.pcall('UNLINK', KEYS[2])
    return failure
  end
end

-- `fields` has names and values by turns. The step has set each by a command of its own, unless it `is_external`.
function LOG.set(fields, is_external)
  if not fields or #fields == 0 then
    return nil
  end
  local parts = {}
  for index = 1, #fields, 2 do
    local field, value = fields[index], fields[index + 1]
    parts[#parts + 1] = #field .. ' ' .. #value .. '\n' .. field .. value
  end
  return LOG.append(HEADER, 'set', parts, hash_expiry(KEYS[1]), is_external and 0 or #parts)
end

function LOG.remove(fields, is_external)
  if not fields or #fields == 0 then
    return nil
  end
  local parts = {}
  for index, field in ipairs(fields) do
    parts[index] = #field .. '\n' .. field
  end
  local expiry = hash_expiry(KEYS[1])
  -- The last field causes two: it is removed, and then the key.
  return LOG.append(HEADER, 'remove', parts, expiry, is_external and 0 or #parts + (expiry and 0 or 1))
end

function LOG.clear(reason)
  return LOG.append(HEADER, 'clear', { reason }, nil, 1)
end

function LOG.append_expiry()
  return LOG.append(HEADER, 'expiry', {}, hash_expiry(KEYS[1]), 0)
end

-- Notices that the hash had fields after the last step and has none now. Called before the first write.
function LOG.begin()
  local text, now = redis.call('GET', KEYS[2]), hash_expiry(KEYS[1])
  local expiry = text and not now and string.match(text, ' #(%d+)$')
  if not expiry then
    return nil
  end
  local time = redis.call('TIME')
  local has_expired = expiry ~= '0' and tonumber(expiry) <= tonumber(time[1]) * 1000 + tonumber(time[2]) / 1000
  -- Nobody is known to have done it.
  local header = string.match(HEADER, '^[^,}]*') .. '}'
  return LOG.append(header, 'clear', { has_expired and 'expired' or 'external' }, nil, 0)
end

