-- Reads fields of a hash, in the order in which they are asked for, until their values have as many bytes as are asked
-- for: it leaves out the rest, but reads at least one. Returns a value or nil for each field that it has read.
-- KEYS: hash. ARGV: most bytes, fields…

local most_bytes, bytes, values = tonumber(ARGV[1]), 0, {}
for index = 2, #ARGV do
  bytes = bytes + redis.call('HSTRLEN', KEYS[1], ARGV[index])
  if bytes > most_bytes and index > 2 then
    break
  end
  values[#values + 1] = redis.call('HGET', KEYS[1], ARGV[index])
end
return values
