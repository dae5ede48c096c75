#!lua flags=allow-oom
-- Renews the lease of a process, also while there is no memory left for other writes: a process that serves reads and
-- streams must not look dead.
-- KEYS: lease, processes. ARGV: process, report, lifetime (ms).

redis.call('SET', KEYS[1], ARGV[2], 'PX', ARGV[3])
redis.call('SADD', KEYS[2], ARGV[1])
