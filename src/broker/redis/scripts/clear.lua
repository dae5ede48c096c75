-- Empties a room's log and keeps its head, in which it says so; announces that. Returns up to where.
-- KEYS: head, log. ARGV: channel, head's lifetime (ms), random, known ids…

-- The log's own type is checked before the first write: what else is stored there is not ours to drop.
redis.call('XLEN', KEYS[2])
local head = vouch(redis.call('GET', KEYS[1]), KEYS[2], server_mark(), ids_from(4), tonumber(ARGV[3]))
head.cleared = { head.epochs[1].number, head.epochs[1].last }
-- First, since Redis without memory left takes it, and then the rest too.
redis.call('UNLINK', KEYS[2])
redis.call('SET', KEYS[1], render(head), 'PX', ARGV[2])
-- A hint only: whoever reads the head finds it there.
redis.pcall('PUBLISH', ARGV[1], id_text(head.cleared) .. ' cleared\n')
return id_text(head.cleared)
