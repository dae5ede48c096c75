-- Reads some fields of a hash: about as many as are asked for, and no more bytes of names and values than are asked for.
-- But it reads at least one field, with those that Redis keeps in the same place of its table. Returns {cursor of the
-- next page, {field, value, …}}; the cursor is "0" after the last page.
-- KEYS: hash. ARGV: cursor, most fields, most bytes.

-- Most fields that Redis is asked for at a time. It begins with one, because a value may be large.
local STEP_FIELDS = 16
-- A hash that was far larger once has many empty places to pass.
local MAX_STEPS = 2000

local cursor, most_fields, most_bytes = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3])
local found, bytes, steps, count, most_count, fitting = {}, 0, 0, 1, STEP_FIELDS, STEP_FIELDS
repeat
  local left = most_fields - #found / 2
  local asked = math.min(left, count)
  local step = redis.call('HSCAN', KEYS[1], cursor, 'COUNT', asked)
  local step_bytes = 0
  for _, text in ipairs(step[2]) do
    step_bytes = step_bytes + #text
  end
  steps = steps + 1
  local fits = bytes + step_bytes <= most_bytes
  if not fits and asked > 1 then
    -- Some of them are large: the same again, one by one.
    count, most_count = 1, 1
  elseif not fits and bytes > 0 then
    break
  else
    cursor, bytes = step[1], bytes + step_bytes
    for _, text in ipairs(step[2]) do
      found[#found + 1] = text
    end
    -- As many as should fit, going by those before.
    fitting = bytes > 0 and math.floor((most_bytes - bytes) * #found / 2 / bytes) or STEP_FIELDS
    count = math.max(1, math.min(count * 2, fitting, most_count))
  end
-- A large value that does not fit would be read in vain.
until cursor == '0' or #found / 2 >= most_fields or fitting < 1 or steps >= MAX_STEPS
return { cursor, found }
