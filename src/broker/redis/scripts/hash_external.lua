-- Appends what other clients have changed in a watched hash: the present values of some fields, in which a mirror of the
-- hash differs. Stands behind hash_log.lua. WORDS: the end of the log that the mirror has, 1 if the log may have another
-- end, fields…
-- Returns how many of the fields were appended; or -1, and has done nothing, if the log has another end.

local MAX_ENTRY_BYTES, MAX_BYTES = 65536, 1048576

local text = redis.call('GET', KEYS[2])
local epoch, last, owner = string.match(text or '', HEAD_PATTERN)
if not epoch or owner ~= server_replication_id() or (epoch .. '-' .. last ~= WORDS[1] and WORDS[2] ~= '1') then
  return -1
end
local failure = begin_changes()
if failure then
  return failure
end
if not hash_expiry(KEYS[1]) and string.find(text, ' #%d+$') then
  return #WORDS - 2
end

local is_hash = hash_expiry(KEYS[1])
local set, gone, bytes, entry_bytes = {}, {}, 0, 0
local function flush()
  failure = failure or append_set(set, true) or append_remove(gone, true)
  set, gone, entry_bytes = {}, {}, 0
end
for index = 3, #WORDS do
  local value = is_hash and redis.call('HGET', KEYS[1], WORDS[index])
  if value then
    set[#set + 1], set[#set + 2] = WORDS[index], value
  else
    gone[#gone + 1] = WORDS[index]
  end
  entry_bytes = entry_bytes + #WORDS[index] + (value and #value or 0)
  if entry_bytes > MAX_ENTRY_BYTES then
    bytes = bytes + entry_bytes
    flush()
    if failure then
      return failure
    end
    if bytes > MAX_BYTES then
      return index - 2
    end
  end
end
flush()
return failure or #WORDS - 2
