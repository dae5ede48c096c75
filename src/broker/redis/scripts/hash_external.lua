-- Appends what other clients have changed in a watched hash: the present values of some fields, in which a mirror of the
-- hash differs. Stands behind hash_log.lua. WORDS: the end of the log that the mirror has, 1 if the log may have another
-- end, fields…
-- Returns how many of the fields were appended; 0, if there is no hash any more, which is appended once for all fields; or
-- -1, and has done nothing, if the log has another end.

local MAX_ENTRY_BYTES, MAX_BYTES = 65536, 1048576

local text = redis.call('GET', KEYS[2])
local epoch, last, owner = string.match(text or '', HEAD_PATTERN)
if not epoch or owner ~= hash_log.replication_id or (epoch .. '-' .. last ~= WORDS[1] and WORDS[2] ~= '1') then
  return -1
end
local failure = LOG.begin()
if failure then
  return failure
end
if redis.call('TYPE', KEYS[1]).ok ~= 'hash' then
  -- If there is no key, it is appended already.
  local is_appended = not hash_expiry(KEYS[1]) and string.find(text, ' #%d+$')
  return not is_appended and LOG.append(HEADER, 'clear', { 'external' }, nil, 0) or 0
end

local set, gone, bytes, entry_bytes = {}, {}, 0, 0
local function flush()
  failure = LOG.set(set, true) or LOG.remove(gone, true)
  set, gone, bytes, entry_bytes = {}, {}, bytes + entry_bytes, 0
  return failure
end
for index = 3, #WORDS do
  local field = WORDS[index]
  local value = redis.call('HGET', KEYS[1], field)
  if value then
    set[#set + 1], set[#set + 2] = field, value
  else
    gone[#gone + 1] = field
  end
  entry_bytes = entry_bytes + #field + (value and #value or 0)
  if entry_bytes > MAX_ENTRY_BYTES then
    failure = flush()
    if failure then
      return failure
    end
    if bytes > MAX_BYTES then
      return index - 2
    end
  end
end
return flush() or #WORDS - 2
