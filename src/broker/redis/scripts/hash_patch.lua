-- Sets and removes fields, all at once. Returns {created, replaced, removed}.
-- KEYS: hash. ARGV: triples of "set", field, value or "remove", field, "".

local created, replaced, removed = 0, 0, 0
-- HSET is the first write wherever there is one: refused for lack of memory, it leaves nothing half done.
for place = 1, #ARGV, 3 do
  if ARGV[place] == 'set' then
    if redis.call('HSET', KEYS[1], ARGV[place + 1], ARGV[place + 2]) == 1 then
      created = created + 1
    else
      replaced = replaced + 1
    end
  end
end
for place = 1, #ARGV, 3 do
  if ARGV[place] == 'remove' then
    removed = removed + redis.call('HDEL', KEYS[1], ARGV[place + 1])
  end
end
return { created, replaced, removed }
