-- Prelude of the conditional writes. KEYS: hash. ARGV: field, …, condition (always, absent, present, matches), entity
-- tags… An entity tag is the SHA-1 of a value.

local function condition_holds(value)
  local condition = ARGV[3]
  if condition == 'absent' then
    return not value
  elseif condition == 'present' then
    return value and true
  end
  local tag = value and redis.sha1hex(value)
  for index = 4, #ARGV do
    if ARGV[index] == tag then
      return true
    end
  end
  return false
end

-- The script's answer if the condition does not hold: {}. Nil if it holds. The value is not part of it: it can be
-- large, and not every caller may read it.
local function refusal()
  if ARGV[3] == 'always' then
    return nil
  end
  return not condition_holds(redis.call('HGET', KEYS[1], ARGV[1])) and {} or nil
end
