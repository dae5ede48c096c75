-- Sets and removes fields in one step. Returns {created, replaced, removed}.
-- KEYS: hash. ARGV: triples of "set", field, value or "remove", field, "".

-- Checked here, since nothing may fail once something is written.
if not redis.acl_check_cmd('HDEL', KEYS[1], '') then
  return redis.error_reply('NOPERM the user has no permission to run HDEL')
end
local set = {}
for index = 1, #ARGV, 3 do
  if ARGV[index] == 'set' then
    set[#set + 1] = ARGV[index + 1]
  end
end
local refused = too_many_fields(set)
if refused then
  return refused
end
local created, replaced, removed = 0, 0, 0
-- The first write is an HSET if there is one, so that nothing is half done if Redis refuses it for lack of memory.
for index = 1, #ARGV, 3 do
  if ARGV[index] == 'set' then
    if redis.call('HSET', KEYS[1], ARGV[index + 1], ARGV[index + 2]) == 1 then
      created = created + 1
    else
      replaced = replaced + 1
    end
  end
end
for index = 1, #ARGV, 3 do
  if ARGV[index] == 'remove' then
    removed = removed + redis.call('HDEL', KEYS[1], ARGV[index + 1])
  end
end
return { created, replaced, removed }
