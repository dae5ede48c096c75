-- Reads some fields of a hash. Stops after about as many fields, or as many bytes of names and values, as are asked
-- for: it exceeds them by the fields of one step at most. Returns {cursor of the next page, {field, value, …}}; the
-- cursor is "0" after the last page.
-- KEYS: hash. ARGV: cursor, most fields, most bytes.

-- Fields that Redis is asked for at a time.
local STEP_FIELDS = 16
-- A hash that was far larger once has many empty places to pass.
local MAX_STEPS = 2000

local cursor, most_fields, most_bytes = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3])
local found, bytes, steps = {}, 0, 0
repeat
  local left = most_fields - #found / 2
  local step = redis.call('HSCAN', KEYS[1], cursor, 'COUNT', math.min(left, STEP_FIELDS))
  cursor = step[1]
  for _, text in ipairs(step[2]) do
    found[#found + 1] = text
    bytes = bytes + #text
  end
  steps = steps + 1
until cursor == '0' or #found / 2 >= most_fields or bytes >= most_bytes or steps >= MAX_STEPS
return { cursor, found }
