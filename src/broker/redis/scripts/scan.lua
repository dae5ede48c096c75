-- Reads some fields of a hash. Stops after about as many fields, or as many bytes of names and values, as are asked
-- for: it exceeds them by the fields of one step at most. Returns {cursor of the next page, {field, value, …}}; the
-- cursor is "0" after the last page.
-- KEYS: hash. ARGV: cursor, most fields, most bytes.

-- Most fields that Redis is asked for at a time. It begins with one, because a value may be large.
local STEP_FIELDS = 16
-- A hash that was far larger once has many empty places to pass.
local MAX_STEPS = 2000

local cursor, most_fields, most_bytes = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3])
local found, bytes, steps, count = {}, 0, 0, 1
repeat
  local left = most_fields - #found / 2
  local step = redis.call('HSCAN', KEYS[1], cursor, 'COUNT', math.min(left, count))
  cursor = step[1]
  for _, text in ipairs(step[2]) do
    found[#found + 1] = text
    bytes = bytes + #text
  end
  steps = steps + 1
  -- As many as should fit, going by those before.
  local fitting = bytes > 0 and math.floor((most_bytes - bytes) * #found / 2 / bytes) or STEP_FIELDS
  count = math.max(1, math.min(count * 2, fitting, STEP_FIELDS))
until cursor == '0' or #found / 2 >= most_fields or bytes >= most_bytes or steps >= MAX_STEPS
return { cursor, found }
