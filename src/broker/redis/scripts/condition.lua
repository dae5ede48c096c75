-- Prelude of the conditional writes. KEYS: hash. ARGV: field, …, condition (always, absent, present, matches), entity
-- tags… A tag is the SHA-1 of the value.

local function condition_holds(present)
  local condition = ARGV[3]
  if condition == 'absent' then
    return not present
  elseif condition == 'present' then
    return present and true
  end
  local tag = present and redis.sha1hex(present)
  for place = 4, #ARGV do
    if ARGV[place] == tag then
      return true
    end
  end
  return false
end

-- The answer where the condition does not hold: {present value or false}.
local function refusal()
  if ARGV[3] == 'always' then
    return nil
  end
  local present = redis.call('HGET', KEYS[1], ARGV[1])
  return not condition_holds(present) and { present } or nil
end
