-- Prelude of the conditional writes. ARGV: …, …, condition, entity tags… A tag is the SHA-1 of the value.

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
