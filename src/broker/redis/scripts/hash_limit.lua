-- Prelude of the writes that set fields. KEYS: hash. MAX_FIELDS is set before it.

-- The error of a hash that would have too many fields with these. Nil if it would not.
local function too_many_fields(fields)
  local present = redis.call('HLEN', KEYS[1])
  if present + #fields <= MAX_FIELDS then
    return nil
  end
  for _, field in ipairs(fields) do
    present = present + 1 - redis.call('HEXISTS', KEYS[1], field)
  end
  return present > MAX_FIELDS and redis.error_reply('TOOMANYFIELDS the hash would have too many fields') or nil
end

