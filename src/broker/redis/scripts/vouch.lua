-- Vouches for a room's head, and creates it where there is none. Returns it.
-- KEYS: head, log. ARGV: head's lifetime (ms), random, known ids…

local text = redis.call('GET', KEYS[1])
local head, changed = vouch(text, KEYS[2], server_mark(), ids_from(3), tonumber(ARGV[2]))
if changed then
  text = render(head)
  redis.call('SET', KEYS[1], text, 'PX', ARGV[1])
end
return text
