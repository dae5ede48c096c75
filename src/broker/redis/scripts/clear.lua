-- Empties a topic's log and announces it. The head stays, and records it; a finished log takes messages again. Returns
-- the position up to which the log was emptied.
-- KEYS: head, log, log of presence events. ARGV: channel, head's lifetime (ms), random, watermarks…

require_permission('SET', KEYS[1], '')
-- Fails before the first write if a key has another type: UNLINK would delete a value that is no log.
redis.call('XLEN', KEYS[2])
redis.call('XLEN', KEYS[3])
local text, replication_id = redis.call('GET', KEYS[1]), server_replication_id()
local head = ensure_epoch(text, { KEYS[2], KEYS[3] }, replication_id, watermarks_from(4), tonumber(ARGV[3]))
head.finished = nil
head.cleared = { head.epochs[1].number, head.epochs[1].last }
-- UNLINK comes before SET: Redis runs it without memory left, and then runs the rest of the script, too.
redis.call('UNLINK', KEYS[2], KEYS[3])
redis.call('SET', KEYS[1], render(head), 'PX', ARGV[2])
-- Announcements are hints: replicas that read the head find the position there.
redis.pcall('PUBLISH', ARGV[1], id_text(head.cleared) .. ' cleared\n')
return id_text(head.cleared)
