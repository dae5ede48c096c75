-- Reads a part of a topic's log in one step. Returns the head or false, the server's replication id, the number of
-- entries, the oldest entry's id or false, the entries in the order of the command, and 1 if more entries were asked
-- for than their limit of bytes allows.
-- KEYS: head, log. ARGV: XRANGE or XREVRANGE, from, to, most entries, bytes from which on there are no more entries.

local FIRST_CHUNK = 8
local MAX_CHUNK = 100

local command, from, to, max_entries, max_bytes =
  ARGV[1], ARGV[2], ARGV[3], tonumber(ARGV[4]), tonumber(ARGV[5])
local oldest = redis.call('XRANGE', KEYS[2], '-', '+', 'COUNT', 1)[1]
local entries, bytes, is_cut_short, chunk = {}, 0, 0, FIRST_CHUNK
while #entries < max_entries do
  if bytes >= max_bytes then
    is_cut_short = 1
    break
  end
  local wanted = math.min(chunk, max_entries - #entries)
  local read = redis.call(command, KEYS[2], from, to, 'COUNT', wanted)
  for index = 1, #read do
    if bytes >= max_bytes then
      is_cut_short = 1
      break
    end
    local entry = read[index]
    entries[#entries + 1] = entry
    -- The id, and the event beside its field's name.
    bytes = bytes + #entry[1] + #entry[2][2]
  end
  if #read < wanted or is_cut_short == 1 then
    break
  end
  from = '(' .. entries[#entries][1]
  -- As many as should fit, so that little is read in vain.
  chunk = math.floor((max_bytes - bytes) * #entries / bytes)
  chunk = math.max(1, math.min(chunk, MAX_CHUNK))
end
return {
  redis.call('GET', KEYS[1]),
  server_replication_id(),
  redis.call('XLEN', KEYS[2]),
  oldest and oldest[1] or false,
  entries,
  is_cut_short,
}
